package gearman

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLSFiles is TLS with what is in files. The zero value is TLS without a
// client certificate and with the authorities of this machine.
type TLSFiles struct {
	// CAFile has the certificates, in PEM, one of which must have signed the
	// server's; "" for the authorities of this machine.
	CAFile string `json:"caFile"`
	// CertFile has the client's certificate, followed by those between it and
	// its authority, and KeyFile its key, in PEM; both or neither.
	CertFile string `json:"certFile"`
	KeyFile  string `json:"keyFile"`
	// ServerName is the name or IP address in the server's certificate, ""
	// for the host that is dialled.
	ServerName string `json:"serverName"`
}

// Validate returns an error if the fields contradict each other. It does not
// look at the files.
func (f TLSFiles) Validate() error {
	if (f.CertFile == "") != (f.KeyFile == "") {
		return errors.New("a certificate and a key go together: give both or neither")
	}
	return nil
}

// Config reads the files, now. Given to Worker.TLS it has every new connection
// use what the files have at that moment, so that a rotated certificate needs
// neither a restart nor a watcher. A certificate and a key that were read
// while they were being replaced do not match, which is an error that passes.
// Errors name the file.
//
// TLS 1.2 is the least that is spoken. geard speaks 1.0 only (protocol section
// 6): it needs a tunnel.
func (f TLSFiles) Config() (*tls.Config, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	config := &tls.Config{ServerName: f.ServerName, MinVersion: tls.VersionTLS12}
	if f.CAFile != "" {
		certificates, err := os.ReadFile(f.CAFile)
		if err != nil {
			return nil, fmt.Errorf("certificates of authorities: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(certificates) {
			return nil, fmt.Errorf("certificates of authorities: %s: it has no PEM certificate", f.CAFile)
		}
	}
	if f.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("client certificate %s with key %s: %w", f.CertFile, f.KeyFile, err)
		}
		// Of config.Certificates none would be sent that the server does not ask for, and the server would complain of a missing one.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return config, nil
}
