package gearman_test

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

// serveTLS runs an embedded server whose configuration new connections find in
// what is returned. Debian's gearmand takes --ssl and goes on in plain text:
// it is built without.
func serveTLS(t *testing.T, config *tls.Config) (address string, current *atomic.Pointer[tls.Config]) {
	t.Helper()
	current = &atomic.Pointer[tls.Config]{}
	current.Store(config)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	gearmantest.ServeListener(t, &gearman.Server{}, tls.NewListener(listener, &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Load(), nil },
	}))
	return listener.Addr().String(), current
}

func TestTLS(t *testing.T) {
	authority := gearmantest.NewAuthority(t)
	address, _ := serveTLS(t, authority.ServerConfig())
	files := authority.WriteFiles(t.TempDir(), authority.Sign("client", nil))
	config, err := files.Config()
	must(t, err)
	worker := startWorker(t, address, []string{"f"}, func(w *gearman.Worker) { w.TLS = files.Config })
	client, err := gearman.DialClient(testContext(t), address, config)
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

	admin, err := gearman.DialAdmin(testContext(t), address, &tls.Config{RootCAs: authority.Pool()})
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

// TestTLSTrouble: whatever is wrong with TLS, the log says it with what is to
// be looked at, no job is taken, and as soon as it is mended the worker works.
func TestTLSTrouble(t *testing.T) {
	authority, stranger := gearmantest.NewAuthority(t), gearmantest.NewAuthority(t)
	expired := func(certificate *x509.Certificate) { certificate.NotAfter = time.Now().Add(-time.Minute) }
	for name, test := range map[string]struct {
		server func(*tls.Config)
		client func(*gearman.TLSFiles)
		says   string
	}{
		"server of another authority": {
			server: func(config *tls.Config) { config.Certificates[0] = stranger.Sign("server", nil) },
			says:   "signed by unknown authority",
		},
		"server of another name": {
			client: func(files *gearman.TLSFiles) { files.ServerName = "gearman.example.org" },
			says:   "valid for server, not gearman.example.org",
		},
		"server of another address": {
			server: func(config *tls.Config) {
				config.Certificates[0] = authority.Sign("server", func(c *x509.Certificate) { c.IPAddresses = nil })
			},
			says: "127.0.0.1",
		},
		"server's certificate expired": {
			server: func(config *tls.Config) { config.Certificates[0] = authority.Sign("server", expired) },
			says:   "expired",
		},
		"client's certificate expired": {
			client: func(files *gearman.TLSFiles) {
				authority.WriteFiles(filepath.Dir(files.CAFile), authority.Sign("client", expired))
			},
			says: "remote error: tls: expired certificate",
		},
		"client of another authority": {
			client: func(files *gearman.TLSFiles) {
				stranger.WriteFiles(filepath.Dir(files.CAFile), stranger.Sign("client", nil))
				files.CAFile = authority.WriteFiles(t.TempDir(), stranger.Sign("client", nil)).CAFile
			},
			says: "remote error: tls:",
		},
		"no client certificate": {
			client: func(files *gearman.TLSFiles) { files.CertFile, files.KeyFile = "", "" },
			says:   "remote error: tls: certificate required",
		},
		"certificate without key": {
			client: func(files *gearman.TLSFiles) { files.KeyFile = "" },
			says:   "go together",
		},
		"no CA file": {
			client: func(files *gearman.TLSFiles) { must(t, os.Remove(files.CAFile)) },
			says:   "ca.crt: no such file",
		},
		"empty CA file": {
			client: func(files *gearman.TLSFiles) { must(t, os.WriteFile(files.CAFile, nil, 0o600)) },
			says:   "ca.crt: it has no PEM certificate",
		},
		"key of another certificate": {
			client: func(files *gearman.TLSFiles) {
				files.KeyFile = authority.WriteFiles(t.TempDir(), authority.Sign("other", nil)).KeyFile
			},
			says: "tls.key: tls: private key does not match",
		},
		"half a certificate": {
			client: func(files *gearman.TLSFiles) {
				must(t, os.WriteFile(files.CertFile, []byte("-----BEGIN CERTIFICATE-----\nMII"), 0o600))
			},
			says: "tls.crt",
		},
	} {
		t.Run(name, func(t *testing.T) {
			bad := authority.ServerConfig()
			if test.server != nil {
				test.server(bad)
			}
			address, server := serveTLS(t, bad)
			folder := t.TempDir()
			files := authority.WriteFiles(folder, authority.Sign("client", nil))
			if test.client != nil {
				test.client(&files)
			}
			used := atomic.Pointer[gearman.TLSFiles]{}
			used.Store(&files)
			var log logLines
			attempts := atomic.Int32{}
			worker := startWorker(t, address, []string{"f"}, func(w *gearman.Worker) {
				w.TLS = func() (*tls.Config, error) {
					attempts.Add(1)
					return used.Load().Config()
				}
				w.Logger = slog.New(slog.NewTextHandler(&log, nil))
			})
			log.await(t, "level=WARN", "no Gearman connection", address, test.says)
			gearmantest.Eventually(t, patience, "more attempts", func() bool { return attempts.Load() >= 3 })
			if warned, connected := log.count("level=WARN"), log.count("connected to the Gearman server"); warned != 1 || connected != 0 {
				t.Errorf("%d warnings of the same trouble, %d connections:\n%s", warned, connected, log.lines)
			}

			good := authority.WriteFiles(folder, authority.Sign("client", nil))
			used.Store(&good)
			server.Store(authority.ServerConfig())
			log.await(t, "connected to the Gearman server")
			config, err := good.Config()
			must(t, err)
			client, err := gearman.DialClient(testContext(t), address, config)
			must(t, err)
			defer func() { _ = client.Close() }()
			task := submit(t, client, "f", "u", "")
			must(t, next(t, "job", worker.jobs).Complete(nil))
			if _, err := task.Wait(testContext(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTLSRotation: the connection that is up does not care for its files; the
// next one uses what they have then.
func TestTLSRotation(t *testing.T) {
	before, after := gearmantest.NewAuthority(t), gearmantest.NewAuthority(t)
	var clients logLines
	config := func(authority *gearmantest.Authority) *tls.Config {
		config := authority.ServerConfig()
		config.VerifyConnection = func(state tls.ConnectionState) error {
			_, err := clients.Write([]byte(state.PeerCertificates[0].Subject.CommonName))
			return err
		}
		return config
	}
	address, server := serveTLS(t, config(before))
	proxy := gearmantest.NewProxy(t, address)
	folder := t.TempDir()
	files := before.WriteFiles(folder, before.Sign("worker before", nil))
	var log logLines
	worker := startWorker(t, proxy.Address, []string{"f"}, func(w *gearman.Worker) {
		w.TLS = files.Config
		w.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	zuul, err := files.Config()
	must(t, err)
	client, err := gearman.DialClient(testContext(t), address, zuul)
	must(t, err)
	defer func() { _ = client.Close() }()
	running := submit(t, client, "f", "running", "")
	job := next(t, "job", worker.jobs)
	log.await(t, "connected to the Gearman server")

	// Everything is rotated, and the worker's certificate is broken at first.
	server.Store(config(after))
	after.WriteFiles(folder, after.Sign("worker after", nil))
	must(t, os.WriteFile(files.CertFile, []byte("half written"), 0o600))
	must(t, job.Complete(nil))
	_, err = running.Wait(testContext(t))
	must(t, err)
	another := submit(t, client, "f", "another", "")
	must(t, next(t, "job of the running connection", worker.jobs).Complete(nil))
	_, err = another.Wait(testContext(t))
	must(t, err)
	if proxy.Accepted() != 1 {
		t.Fatal("the worker connected again: the test shows nothing")
	}

	proxy.Cut()
	_ = next(t, "loss", worker.lost)
	log.await(t, "level=WARN", files.CertFile, "failed to find any PEM data")
	if clients.count("worker after") > 0 {
		t.Error("the worker connected with a broken certificate")
	}
	after.WriteFiles(folder, after.Sign("worker after", nil))
	clients.await(t, "worker after")
	last := submit(t, client, "f", "last", "")
	must(t, next(t, "job after the rotation", worker.jobs).Complete(nil))
	_, err = last.Wait(testContext(t))
	must(t, err)
}

// logLines are what a logger wrote.
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(line))
	return len(line), nil
}

// count the lines that have all the texts.
func (l *logLines) count(texts ...string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := 0
	for _, line := range l.lines {
		all := true
		for _, text := range texts {
			all = all && strings.Contains(line, text)
		}
		if all {
			found++
		}
	}
	return found
}

func (l *logLines) await(t testing.TB, texts ...string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for l.count(texts...) == 0 {
		if time.Now().After(deadline) {
			t.Fatalf("no line with %q in\n%s", texts, strings.Join(l.lines, ""))
		}
		time.Sleep(time.Millisecond)
	}
}
