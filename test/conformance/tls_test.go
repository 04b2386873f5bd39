//go:build linux

package conformance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// tlsServers: builds over TLS, where the server can be trusted; no function for one that cannot.
func tlsServers(s *scene) {
	s.terminate() // it was started without TLS
	s.proxies = nil
	job := s.newJob(exits)
	for _, trusted := range []bool{true, false} {
		certificate, authority := selfSigned(s)
		address := s.serveTLS(certificate)
		if !trusted {
			_, authority = selfSigned(s)
		}
		servers := filepath.Join(s.TempDir(), "servers.yaml")
		text := fmt.Sprintf("servers: [{name: secure, address: %q, tls: {caFile: %q}}]\n", address, authority)
		s.must(os.WriteFile(servers, []byte(text), 0o600))
		s.operator = s.startOperator(s.T, "--gearman-servers", servers)
		pool := x509.NewCertPool()
		pool.AddCert(certificate.Leaf)
		zuul, err := zuulclient.Dial(s.within(), address, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, zuulclient.Zuul2)
		s.must(err)
		build := s.submitBy(zuul, zuulclient.Request{Job: job.Name})
		if trusted {
			s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
		} else {
			_, err := s.operator.AwaitLine("certificate", patience)
			s.must(err)
			if state := build.State(); len(state.Packets) > 0 {
				s.Errorf("a server that is not trusted had a build run: %v", kinds(state))
			}
		}
		s.terminate()
		s.must(zuul.Close())
	}
}

func (s *scene) serveTLS(certificate tls.Certificate) (address string) {
	s.Helper()
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	listener := tls.NewListener(plain, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	gearmantest.ServeListener(s, &gearman.Server{Behaviour: gearman.Geard}, listener)
	return listener.Addr().String()
}

// selfSigned is a certificate for the loopback and a file with what to trust.
func selfSigned(s *scene) (tls.Certificate, string) {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gearman"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	s.must(err)
	leaf, err := x509.ParseCertificate(der)
	s.must(err)
	file := filepath.Join(s.TempDir(), "ca.pem")
	s.must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, file
}
