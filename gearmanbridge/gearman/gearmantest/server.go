// Package gearmantest helps to test against Gearman servers: the real gearmand,
// the embedded server and a proxy that makes networks fail.
package gearmantest

import (
	"errors"
	"net"
	"testing"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// StartServer starts an embedded server on a free port of the loopback
// interface and closes it when the test ends.
func StartServer(t testing.TB, behaviour gearman.Behaviour) (address string, server *gearman.Server) {
	t.Helper()
	server = &gearman.Server{Behaviour: behaviour}
	return Serve(t, server, net.JoinHostPort(ownHost(), "0")), server
}

// Serve starts a server at the TCP address, for example that of a server
// closed before, and closes it when the test ends.
func Serve(t testing.TB, server *gearman.Server, address string) string {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ServeListener(t, server, listener)
	return listener.Addr().String()
}

// ServeListener has a server accept from the listener, one of TLS for example,
// and closes both when the test ends.
func ServeListener(t testing.TB, server *gearman.Server, listener net.Listener) {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		_ = listener.Close()
		if err := <-served; !errors.Is(err, gearman.ErrServerClosed) {
			t.Errorf("gearman server ended: %v", err)
		}
	})
}
