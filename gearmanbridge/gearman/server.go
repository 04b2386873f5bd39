package gearman

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
)

// ErrServerClosed is returned by Server.Serve after Close.
var ErrServerClosed = errors.New("gearman: server closed")

// Behaviour is the program an embedded Server behaves like.
type Behaviour int

const (
	// Gearmand is the C server of gearman.org, as Debian's 1.1.20 is.
	Gearmand Behaviour = iota
	// Geard is the server of Python's gear, which Zuul v2 embeds.
	Geard
)

// String returns "gearmand" or "geard".
func (b Behaviour) String() string {
	if b == Geard {
		return "geard"
	}
	return "gearmand"
}

// Server is a small Gearman server for tests and demonstrations. It keeps
// everything in memory, times nothing out and authenticates nobody.
//
// Where gearmand and geard differ it does as its Behaviour says, also where
// that is unpleasant. It is stricter than both about broken packets: it
// closes the connection where gearmand loses its place in the stream.
type Server struct {
	// Behaviour must not change after Serve.
	Behaviour Behaviour
	// JobRetries ends a job with WORK_FAIL when its worker was lost that
	// many times, 0 for never (gearmand --job-retries).
	JobRetries int
	// RoundRobin makes a worker's functions take turns; without it the one
	// registered last is served first (gearmand --round-robin).
	RoundRobin bool
	// WorkerWakeup is how many sleeping workers are woken for a job, 0 for
	// all (gearmand --worker-wakeup).
	WorkerWakeup int
	// Logger gets connections that were dropped for their faults; nil means
	// no log.
	Logger *slog.Logger

	tasks sync.WaitGroup // goroutines of connections

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]bool
	peers     []*peer // in the order they connected
	board     board
}

// Serve accepts connections until Close and then returns ErrServerClosed. It
// may be called for several listeners; for TLS give it one of tls.NewListener.
func (s *Server) Serve(listener net.Listener) error {
	defer func() { _ = listener.Close() }()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrServerClosed
	}
	if s.listeners == nil {
		s.listeners = make(map[net.Listener]bool)
		s.board.init(s)
	}
	s.listeners[listener] = true
	s.mu.Unlock()
	for {
		network, err := listener.Accept()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.listeners, listener)
			if s.closed {
				return ErrServerClosed
			}
			return fmt.Errorf("gearman: %w", err)
		}
		s.add(network)
	}
}

// ListenAndServe serves the TCP address, for example "127.0.0.1:4730".
func (s *Server) ListenAndServe(address string) error {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return fmt.Errorf("gearman: %w", err)
	}
	return s.Serve(listener)
}

// Close closes all listeners and connections at once and forgets all jobs, as
// a killed server does. It returns when nothing of the server is left.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for listener := range s.listeners {
		_ = listener.Close()
	}
	for _, p := range s.peers {
		p.close()
	}
	s.mu.Unlock()
	s.tasks.Wait()
	return nil
}

func (s *Server) add(network net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = network.Close()
		return
	}
	s.board.lastPeer++
	p := newPeer(network, s.board.lastPeer)
	s.peers = append(s.peers, p)
	s.tasks.Go(func() { s.read(p) })
	s.tasks.Go(p.writeLoop)
}

// read serves one connection until it ends or misbehaves.
func (s *Server) read(p *peer) {
	var err error
	for err == nil {
		err = s.readOne(p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Logger != nil {
		s.Logger.Info("Gearman connection ended", "peer", p.host, "clientID", p.clientID, "error", err)
	}
	p.close()
	for i, other := range s.peers {
		if other == p {
			s.peers = append(s.peers[:i:i], s.peers[i+1:]...)
			break
		}
	}
	if !s.closed {
		s.board.lost(p)
	}
}

// readOne takes a packet or, if the first byte is not NUL, a line of text.
func (s *Server) readOne(p *peer) error {
	first, err := p.reader.Peek(1)
	if err != nil {
		return err
	}
	if first[0] != 0 {
		line, err := readLine(p.reader)
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.command(p, line)
	}
	packet, err := ReadPacket(p.reader, DefaultMaxPacketSize)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Behaviour == Geard {
		return s.board.geardPacket(p, packet)
	}
	return s.board.gearmandPacket(p, packet)
}

// maxLine bounds a line of the text protocol in bytes.
const maxLine = 1 << 20

var errLineTooLong = fmt.Errorf("%w: line of more than %d bytes", ErrProtocol, maxLine)

// readLine returns the next line without its end, "\n" or "\r\n".
func readLine(reader *bufio.Reader) (string, error) {
	var line []byte
	for {
		part, err := reader.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return "", errLineTooLong
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return "", err
		}
		line = line[:len(line)-1]
		if len(line) > 0 && line[len(line)-1] == '\r' {
			line = line[:len(line)-1]
		}
		return string(line), nil
	}
}

// hostName is the host part of gearmand's job handles.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}
