package gearman

import (
	"bufio"
	"bytes"
	"net"
	"sync"
)

// peer is a connection of the embedded server: client, worker, administrator
// or all of them. Its fields but the queue are guarded by the server's lock.
type peer struct {
	network net.Conn
	reader  *bufio.Reader
	host    string
	number  int // stands for the file descriptor in `workers`

	clientID   string
	abilities  []string       // function names, in the order they are served
	registered map[string]int // how often each is among them
	sleeping   bool
	noopSent   bool // gearmand: no other NOOP until the next grab
	exceptions bool // gearmand: asked for WORK_EXCEPTION

	mu     sync.Mutex
	queue  []byte // encoded, to be written
	closed bool
	more   chan struct{} // holds one token
}

func newPeer(network net.Conn, number int) *peer {
	host, _, err := net.SplitHostPort(network.RemoteAddr().String())
	if err != nil {
		host = network.RemoteAddr().String()
	}
	return &peer{
		network: network,
		reader:  bufio.NewReader(network),
		host:    host,
		number:  number,
		more:    make(chan struct{}, 1),

		registered: make(map[string]int),
	}
}

// send queues a packet. It never blocks; what a closed peer gets is dropped.
func (p *peer) send(packet Packet) {
	var encoded bytes.Buffer
	if WritePacket(&encoded, packet) == nil {
		p.sendText(encoded.String())
	}
}

func (p *peer) sendText(text string) {
	p.mu.Lock()
	if !p.closed {
		p.queue = append(p.queue, text...)
	}
	p.mu.Unlock()
	p.signal()
}

func (p *peer) signal() {
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// close drops what is queued and ends both loops of the peer.
func (p *peer) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.network.Close()
	p.signal()
}

func (p *peer) writeLoop() {
	writer := deadlineWriter{p.network}
	for range p.more {
		p.mu.Lock()
		queue, closed := p.queue, p.closed
		p.queue = nil
		p.mu.Unlock()
		if closed {
			return
		}
		if _, err := writer.Write(queue); err != nil {
			_ = p.network.Close() // the reader sees it
			p.mu.Lock()
			p.closed = true
			p.mu.Unlock()
			return
		}
	}
}

func (p *peer) can(function string) bool { return p.registered[function] > 0 }
