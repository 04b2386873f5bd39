package gearman

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// A link that is silently gone is noticed by the kernel too, also where nobody asks the server anything.
func TestKeepAlive(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	connection, err := dial(t.Context(), listener.Addr().String(), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.close() }()
	raw, err := connection.network.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	option := func(level, name int) (value int) {
		var optionErr error
		if err := raw.Control(func(fd uintptr) { value, optionErr = syscall.GetsockoptInt(int(fd), level, name) }); err != nil || optionErr != nil {
			t.Fatal(err, optionErr)
		}
		return value
	}
	if option(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE) == 0 {
		t.Error("no keepalive")
	}
	idle := time.Duration(option(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE)) * time.Second
	interval := time.Duration(option(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL)) * time.Second
	count := time.Duration(option(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT))
	if idle < 30*time.Second || idle > time.Minute || idle+interval*count > 2*time.Minute {
		t.Errorf("first probe after %v, then %d in intervals of %v", idle, count, interval)
	}
}

// TestDefaultPatience: a half-open link is given up within two minutes (protocol section 7, half-open): the ping may come a whole interval after the
// link broke, and a write may stand before the time-out is looked at.
func TestDefaultPatience(t *testing.T) {
	if most := DefaultPingInterval + DefaultPingTimeout + writeTimeout; most > 2*time.Minute {
		t.Errorf("noticed after up to %v", most)
	}
}
