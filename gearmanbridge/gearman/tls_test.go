package gearman_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

// authority signs certificates for the loopback address, for servers and
// clients alike.
type authority struct {
	t           *testing.T
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pool        *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	a.certificate, err = x509.ParseCertificate(der)
	must(t, err)
	a.key = key
	a.pool.AddCert(a.certificate)
	return a
}

func (a *authority) sign(name string) tls.Certificate {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	must(a.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// clientConfig is that of a client with a certificate.
func (a *authority) clientConfig() *tls.Config {
	return &tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{a.sign("client")}}
}

// Debian's gearmand takes --ssl and goes on in plain text: it is built without.
func TestTLS(t *testing.T) {
	authority := newAuthority(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	gearmantest.ServeListener(t, &gearman.Server{}, tls.NewListener(listener, &tls.Config{
		Certificates: []tls.Certificate{authority.sign("server")},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    authority.pool,
	}))
	address := listener.Addr().String()
	worker := startWorker(t, address, []string{"f"}, func(w *gearman.Worker) { w.TLS = authority.clientConfig() })
	client, err := gearman.DialClient(testContext(t), address, authority.clientConfig())
	must(t, err)
	defer func() { _ = client.Close() }()
	task := submit(t, client, "f", "u", strings.Repeat("payload", 100_000))
	job := next(t, "job", worker.jobs)
	must(t, job.Data([]byte("data")))
	must(t, job.Complete(job.Payload))
	event, err := task.Wait(testContext(t))
	if err != nil || len(event.Data) != 700_000 {
		t.Errorf("got %d bytes, %v", len(event.Data), err)
	}

	admin, err := gearman.DialAdmin(testContext(t), address, &tls.Config{RootCAs: authority.pool})
	if err == nil { // TLS 1.3 refuses a client without certificate only now
		_, err = admin.Status(testContext(t))
		_ = admin.Close()
	}
	if err == nil {
		t.Error("the server took a client without certificate")
	}
	_, err = gearman.DialAdmin(testContext(t), address, &tls.Config{})
	if err == nil || !strings.Contains(err.Error(), "TLS with "+address) {
		t.Errorf("a server of an unknown authority: got %v", err)
	}
}
