package gearman

import (
	"net"
	"strings"
	"testing"
	"time"
)

// countingConn counts writes, each of which a TCP connection makes a system
// call of.
type countingConn struct {
	net.Conn
	writes, bytes int
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.writes++
	c.bytes += len(p)
	return len(p), nil
}

func (c *countingConn) SetWriteDeadline(time.Time) error { return nil }

func TestRegistrationIsABurst(t *testing.T) {
	var functions []string
	for range 3000 {
		functions = append(functions, strings.Repeat("f", 60+len(functions)%10)+string(rune('a'+len(functions)%26)))
	}
	network := &countingConn{}
	connection := newConn(network, 0)
	packets := newSession(func() bool { return true }).start("id", functions)
	if err := connection.write(packets...); err != nil {
		t.Fatal(err)
	}
	if most := network.bytes/writePiece + 1; network.writes > most {
		t.Errorf("%d writes for %d bytes, want at most %d", network.writes, network.bytes, most)
	}
}

func TestSmallPacketIsOneWrite(t *testing.T) {
	network := &countingConn{}
	connection := newConn(network, 0)
	if err := connection.write(request(PacketWorkData, "H:host:1", strings.Repeat("x", 1000))); err != nil {
		t.Fatal(err)
	}
	if network.writes != 1 {
		t.Errorf("%d writes", network.writes)
	}
}

func TestWriteAfterCloseFails(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	connection := newConn(near, 0)
	_ = connection.close()
	for range 2 {
		if err := connection.write(request(PacketGrabJobUniq)); err == nil {
			t.Error("wrote to a closed connection")
		}
	}
}
