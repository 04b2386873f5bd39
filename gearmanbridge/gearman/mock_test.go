package gearman_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// mockServer is a server whose every byte the test decides.
type mockServer struct {
	t        *testing.T
	listener net.Listener
	conn     net.Conn
}

func newMockServer(t *testing.T) *mockServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mockServer{t: t, listener: listener}
	t.Cleanup(func() {
		_ = listener.Close()
		m.hangUp()
	})
	return m
}

func (m *mockServer) address() string { return m.listener.Addr().String() }

// accept takes the next connection, which the other methods then use.
func (m *mockServer) accept() {
	m.t.Helper()
	_ = m.listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	conn, err := m.listener.Accept()
	if err != nil {
		m.t.Fatal(err)
	}
	m.conn = conn
}

// dial makes it the other end of a connection: a client without manners.
func (m *mockServer) dial(address string) {
	m.t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		m.t.Fatal(err)
	}
	m.conn = conn
}

func (m *mockServer) hangUp() {
	if m.conn != nil {
		_ = m.conn.Close()
	}
}

func (m *mockServer) send(bytes string) {
	m.t.Helper()
	if _, err := io.WriteString(m.conn, bytes); err != nil {
		m.t.Fatal(err)
	}
}

// expect reads exactly these bytes.
func (m *mockServer) expect(want string) {
	m.t.Helper()
	got := make([]byte, len(want))
	_ = m.conn.SetReadDeadline(time.Now().Add(patience))
	n, err := io.ReadFull(m.conn, got)
	if string(got[:n]) != want {
		m.t.Fatalf("got  %q\nwant %q (%v)", got[:n], want, err)
	}
}

// expectSilence fails if a byte comes within the time.
func (m *mockServer) expectSilence(within time.Duration) {
	m.t.Helper()
	got := make([]byte, 1024)
	_ = m.conn.SetReadDeadline(time.Now().Add(within))
	if n, err := m.conn.Read(got); n > 0 || errors.Is(err, io.EOF) {
		m.t.Fatalf("got %q, %v; want silence", got[:n], err)
	}
}

// expectEnd waits until the other side closes the connection, and fails at any
// byte before.
func (m *mockServer) expectEnd() {
	m.t.Helper()
	got := make([]byte, 1024)
	_ = m.conn.SetReadDeadline(time.Now().Add(patience))
	n, err := m.conn.Read(got)
	if n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		m.t.Fatalf("got %q, %v; want the end", got[:n], err)
	}
}
