package localcluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// keyPair is a certificate and its key, both as PEM.
type keyPair struct{ certificate, key []byte }

// authority issues the certificates of one cluster: one authority for servers and clients alike, as nothing outside
// the cluster trusts it.
type authority struct {
	keyPair
	parsed *x509.Certificate
	signer *ecdsa.PrivateKey
}

// subject is who a certificate is for. Kubernetes reads user and groups from it.
type subject struct {
	user      string
	groups    []string
	hosts     []string // DNS names and IP addresses; makes it a server certificate too
	authority bool
}

// A local cluster is made anew far more often than this; a day back allows for a clock set right after the start.
const (
	certificateLifetime = 2 * 365 * 24 * time.Hour
	clockAllowance      = 24 * time.Hour
)

func newAuthority(name string) (*authority, error) {
	template, err := certificateTemplate(subject{user: name, authority: true}, time.Now())
	if err != nil {
		return nil, err
	}
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	pair, err := sign(template, template, signer, signer)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(pair.certificate)
	parsed, err := x509.ParseCertificate(block.Bytes)
	return &authority{keyPair: pair, parsed: parsed, signer: signer}, err
}

func (a *authority) issue(to subject) (keyPair, error) {
	template, err := certificateTemplate(to, time.Now())
	if err != nil {
		return keyPair{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keyPair{}, err
	}
	pair, err := sign(template, a.parsed, key, a.signer)
	if err != nil {
		return keyPair{}, fmt.Errorf("certificate for %s: %w", to.user, err)
	}
	return pair, nil
}

func certificateTemplate(to subject, now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: to.user, Organization: to.groups},
		NotBefore:             now.Add(-clockAllowance),
		NotAfter:              now.Add(certificateLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if to.authority {
		template.IsCA = true
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
		template.ExtKeyUsage = nil
	}
	for _, host := range to.hosts {
		if address := net.ParseIP(host); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	if len(to.hosts) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	return template, nil
}

func sign(template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) (keyPair, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return keyPair{}, err
	}
	encodedKey, err := encodeKey(key)
	if err != nil {
		return keyPair{}, err
	}
	return keyPair{certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: encodedKey}, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// newServiceAccountKey returns the key that signs service account tokens; its public half verifies them.
func newServiceAccountKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return encodeKey(key)
}
