package gearman

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultPort is the port of an address that names none.
const DefaultPort = "4730"

const (
	connectTimeout = 5 * time.Second
	// writeTimeout bounds each piece of up to writePiece bytes, not a whole
	// packet: a slow link may take its time as long as it moves.
	writeTimeout = 30 * time.Second
	writePiece   = 64 << 10
)

// conn is a connection to a server. One goroutine may read; any may write.
type conn struct {
	network  net.Conn
	reader   *bufio.Reader
	limit    int
	lastRead atomic.Int64 // nanoseconds since the epoch: when bytes last came

	mu     sync.Mutex
	writer *bufio.Writer
	held   []Packet
}

// dial connects to address, "host:port" or "host", over TLS if a configuration
// is given.
func dial(ctx context.Context, address string, tlsConfig *tls.Config, limit int) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	address = withPort(address)
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3,
	}}
	network, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("gearman: %w", err)
	}
	if tlsConfig == nil {
		return newConn(network, limit), nil
	}
	tlsConfig = tlsConfig.Clone()
	if tlsConfig.ServerName == "" {
		tlsConfig.ServerName, _, _ = net.SplitHostPort(address)
	}
	secure := tls.Client(network, tlsConfig)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = network.Close()
		return nil, fmt.Errorf("gearman: TLS with %s: %w", address, err)
	}
	return newConn(secure, limit), nil
}

func withPort(address string) string {
	_, _, err := net.SplitHostPort(address)
	var addressError *net.AddrError
	if errors.As(err, &addressError) && addressError.Err == "missing port in address" {
		return net.JoinHostPort(strings.Trim(address, "[]"), DefaultPort)
	}
	return address
}

func newConn(network net.Conn, limit int) *conn {
	c := &conn{network: network, limit: limit}
	c.reader = bufio.NewReaderSize(c, 32<<10)
	c.writer = bufio.NewWriterSize(deadlineWriter{network}, writePiece)
	c.lastRead.Store(time.Now().UnixNano())
	return c
}

// Read notes when the peer was last heard of, also within a long packet.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.network.Read(p)
	if n > 0 {
		c.lastRead.Store(time.Now().UnixNano())
	}
	return n, err
}

func (c *conn) readPacket() (Packet, error) {
	return ReadPacket(c.reader, c.limit)
}

// write sends the packets, after those that are held back.
func (c *conn) write(packets ...Packet) error { return c.send(packets, false) }

// send sends the packets, before or after those that are held back, in as few
// system calls as their size allows. After an error the connection is closed: a
// packet may have gone out in part.
func (c *conn) send(packets []Packet, ahead bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	parts := [][]Packet{c.held, packets}
	if ahead {
		slices.Reverse(parts)
	}
	c.held = nil
	for _, part := range parts {
		for _, packet := range part {
			if err := WritePacket(c.writer, packet); err != nil {
				_ = c.close()
				return err
			}
		}
	}
	if err := c.writer.Flush(); err != nil {
		_ = c.close()
		return err
	}
	return nil
}

// hold keeps the packets back until the next write, to go out with it.
func (c *conn) hold(packets ...Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, packet := range packets {
		packet.Args = slices.Clone(packet.Args)
		for i, arg := range packet.Args {
			packet.Args[i] = bytes.Clone(arg) // the caller's
		}
		c.held = append(c.held, packet)
	}
}

// writeText sends a line of the text protocol.
func (c *conn) writeText(text string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.writer.WriteString(text); err != nil {
		return err
	}
	return c.writer.Flush()
}

// close ends the connection, also under a write in progress.
func (c *conn) close() error { return c.network.Close() }

// deadlineWriter gives each piece of a write its own deadline.
type deadlineWriter struct{ network net.Conn }

func (w deadlineWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		piece := p[:min(len(p), writePiece)]
		if err := w.network.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return written, err
		}
		n, err := w.network.Write(piece)
		written += n
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}
