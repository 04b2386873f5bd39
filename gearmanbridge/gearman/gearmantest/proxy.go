package gearmantest

import (
	"bytes"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// Direction is the way bytes go through a Proxy.
type Direction int

const (
	// ToServer is from who dialled the proxy to the server behind it.
	ToServer Direction = iota
	// FromServer is the way back.
	FromServer
)

// String returns "to server" or "from server".
func (d Direction) String() string {
	if d == FromServer {
		return "from server"
	}
	return "to server"
}

// Chunk is what a Proxy read at once from a connection.
type Chunk struct {
	Connection int // 1 is the first connection accepted
	Direction  Direction
	Bytes      []byte
	Read       time.Time
}

// Proxy is a TCP proxy before a server that records what goes through and can
// make the network fail.
type Proxy struct {
	// Address is where the proxy listens, "127.0.0.1:port".
	Address string

	target   string
	listener net.Listener
	tasks    sync.WaitGroup

	mu          sync.Mutex
	changed     *sync.Cond
	connections map[int][2]net.Conn
	accepted    int
	closed      bool
	refusing    bool
	swallowing  bool
	muted       int // the last of the connections that are mute
	delay       time.Duration
	recording   []Chunk
}

// NewProxy starts a proxy before the server at target and ends it with the
// test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		Address:     listener.Addr().String(),
		target:      target,
		listener:    listener,
		connections: make(map[int][2]net.Conn),
	}
	p.changed = sync.NewCond(&p.mu)
	p.tasks.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.changed.Broadcast()
	p.mu.Unlock()
	_ = p.listener.Close()
	p.Cut()
	p.tasks.Wait()
}

// Cut closes every connection. New ones are let through.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for number, pair := range p.connections {
		_ = pair[0].Close()
		_ = pair[1].Close()
		delete(p.connections, number)
	}
}

// Refuse has the proxy close new connections at once, or accept them again.
func (p *Proxy) Refuse(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusing = refuse
}

// HalfOpen makes the network silent: connections stay open, what is sent is
// lost, in both directions and on new connections too. After HalfOpen(false)
// bytes pass again, without those that were lost.
func (p *Proxy) HalfOpen(silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.swallowing = silent
	p.changed.Broadcast()
}

// Mute has the connections there are stay open, and what is sent on them lost, as if the server's machine had lost its power. New ones are let through,
// as if to another server.
func (p *Proxy) Mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muted = p.accepted
}

// Delay holds what is read from now on back for the duration.
func (p *Proxy) Delay(delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = delay
}

// Accepted returns how many connections were ever let through.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Recording returns what has come, swallowed or not, in order.
func (p *Proxy) Recording() []Chunk {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Chunk(nil), p.recording...)
}

// Take returns the recording and empties it. Parts that are taken one after the
// other have all that came, in order.
func (p *Proxy) Take() []Chunk {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.recording
	p.recording = nil
	return taken
}

// Connected tells whether a connection is open still.
func (p *Proxy) Connected(connection int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, open := p.connections[connection]
	return open
}

// Forget empties the recording. A packet that is half recorded then makes
// Packets of its connection stop early.
func (p *Proxy) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recording = nil
}

// Packets returns the whole packets recorded in a direction, connection after
// connection.
func (p *Proxy) Packets(direction Direction) []gearman.Packet {
	p.mu.Lock()
	defer p.mu.Unlock()
	streams := make([]bytes.Buffer, p.accepted+1)
	for _, chunk := range p.recording {
		if chunk.Direction == direction {
			_, _ = streams[chunk.Connection].Write(chunk.Bytes)
		}
	}
	var packets []gearman.Packet
	for i := range streams {
		for {
			packet, err := gearman.ReadPacket(&streams[i], 0)
			if err != nil {
				break
			}
			packets = append(packets, packet)
		}
	}
	return packets
}

// Inject sends bytes of its own on a connection as if the other side had, and
// records them: a packet replayed, or one that no server sends. Nothing else
// should be on its way there, lest it land within another packet.
func (p *Proxy) Inject(connection int, direction Direction, data []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pair, open := p.connections[connection]
	if !open {
		return fmt.Errorf("connection %d is closed", connection)
	}
	p.recording = append(p.recording, Chunk{connection, direction, bytes.Clone(data), time.Now()})
	to := pair[1]
	if direction == FromServer {
		to = pair[0]
	}
	_, err := to.Write(data)
	return err
}

func (p *Proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.connect(near)
	}
}

func (p *Proxy) connect(near net.Conn) {
	p.mu.Lock()
	refusing := p.refusing
	p.mu.Unlock()
	if refusing {
		_ = near.Close()
		return
	}
	far, err := net.Dial("tcp", p.target)
	if err != nil {
		_ = near.Close()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.refusing {
		_ = near.Close()
		_ = far.Close()
		return
	}
	p.accepted++
	number := p.accepted
	p.connections[number] = [2]net.Conn{near, far}
	p.tasks.Go(func() { p.pass(number, ToServer, near, far) })
	p.tasks.Go(func() { p.pass(number, FromServer, far, near) })
}

// pass moves bytes until either side ends, and then ends both.
func (p *Proxy) pass(number int, direction Direction, from, to net.Conn) {
	defer func() {
		_ = from.Close()
		_ = to.Close()
		p.mu.Lock()
		delete(p.connections, number)
		p.mu.Unlock()
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			delay, swallow := p.record(number, direction, buffer[:n])
			if delay > 0 {
				time.Sleep(delay)
			}
			if !swallow {
				if _, writeErr := to.Write(buffer[:n]); writeErr != nil {
					return
				}
			}
		}
		if err != nil {
			p.awaitSound() // a silent network does not tell of ends
			return
		}
	}
}

// awaitSound returns when the network is not silent or the proxy ends.
func (p *Proxy) awaitSound() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.swallowing && !p.closed {
		p.changed.Wait()
	}
}

func (p *Proxy) record(number int, direction Direction, data []byte) (delay time.Duration, swallow bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recording = append(p.recording, Chunk{number, direction, bytes.Clone(data), time.Now()})
	return p.delay, p.swallowing || number <= p.muted
}
