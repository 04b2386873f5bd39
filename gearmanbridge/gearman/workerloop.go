package gearman

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// loop is the life of one connection of a Worker. Two goroutines live it: the
// one that reads does what a packet asks for by itself, for that is the way of
// every job and a handover between goroutines costs as much as the job; the
// other looks after time and the callers of the worker.
type loop struct {
	worker *Worker
	link   *link
	logger *slog.Logger
	heard  bool // from the server; the reader's

	mu         sync.Mutex // one event at a time: from what it is until its packets are written
	over       bool       // what was read ahead is for nobody any more
	session    *session
	generation int       // of the functions the session knows
	pinged     time.Time // when the unanswered ping was sent; zero for none
}

// runConnection connects, registers and works until the connection is lost or
// ctx is done. It tells whether the server said anything.
func (w *Worker) runConnection(ctx context.Context) (connected bool, err error) {
	connection, err := w.dial(ctx)
	if err != nil {
		return false, err
	}
	select {
	case <-w.reconnect: // that was about the connection before
	default:
	}
	l := &loop{worker: w, link: newLink(connection, w.signal), session: w.newSession(), logger: w.logger()}
	defer l.session.release() // the connection took the answer to its last grab with it
	stop := context.AfterFunc(ctx, func() { _ = connection.close() })

	var reader sync.WaitGroup
	if err = l.start(); err == nil {
		if w.Connected != nil {
			w.Connected()
		}
		failure := make(chan error, 1)
		reader.Go(func() { failure <- l.read() })
		err = l.watch(failure)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		defer l.lost(err)
	}
	stop()
	_ = connection.close() // also under a write in progress
	l.end()
	reader.Wait()
	l.link.kill()
	return l.heard, err
}

func (w *Worker) dial(ctx context.Context) (*conn, error) {
	if w.TLS == nil {
		return dial(ctx, w.Address, nil, w.MaxPacketSize)
	}
	config, err := w.TLS()
	if err != nil {
		return nil, fmt.Errorf("gearman: TLS with %s: %w", w.Address, err)
	}
	return dial(ctx, w.Address, config, w.MaxPacketSize)
}

func (w *Worker) newSession() *session {
	free := w.Free
	if free == nil {
		free = func() bool { return true }
	}
	s := newSession(free)
	s.window = max(w.Window, 1)
	if w.Reserve != nil {
		s.reserve = w.Reserve
	}
	if w.Release != nil {
		s.release = w.Release
	}
	return s
}

// start registers everything in one burst.
func (l *loop) start() error {
	l.worker.mu.Lock()
	functions := l.worker.functions
	l.generation = l.worker.generation
	draining := l.worker.isDraining
	l.worker.needsWaking = false
	l.worker.mu.Unlock()
	if draining {
		l.session.drain()
	}
	return l.link.conn.write(l.session.start(l.worker.ClientID, functions)...)
}

func (l *loop) lost(reason error) {
	if l.worker.Lost != nil {
		l.worker.Lost(reason)
	}
}

// read takes packets until the connection fails.
func (l *loop) read() error {
	for {
		packet, err := l.link.conn.readPacket()
		if err != nil {
			return err
		}
		if err := l.handle(func() []Packet { return l.received(packet) }); err != nil {
			return err
		}
	}
}

// watch looks after the rest until reading or writing fails, or the server has
// been mute for too long.
func (l *loop) watch(failure <-chan error) error {
	interval := orDefault(l.worker.PingInterval, DefaultPingInterval)
	timeout := orDefault(l.worker.PingTimeout, DefaultPingTimeout)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	patience := time.NewTimer(timeout)
	defer patience.Stop()
	for {
		var event func() []Packet
		select {
		case err := <-failure:
			return err
		case <-l.worker.reconnect:
			return errReconnect
		case <-l.worker.changed:
			event = l.news
		case <-ticker.C:
			event = func() []Packet {
				if l.pinged.IsZero() {
					l.pinged = time.Now()
					patience.Reset(timeout)
				}
				return l.session.tick()
			}
		case <-patience.C:
			waits, left := l.patienceLeft(timeout)
			if waits && left <= 0 {
				return l.worker.errMute()
			}
			if waits {
				patience.Reset(left)
			}
			continue
		}
		if err := l.handle(event); err != nil {
			return err
		}
	}
}

// handle has the session take an event, and sends what comes of it.
func (l *loop) handle(event func() []Packet) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return net.ErrClosed
	}
	if !l.session.draining && l.worker.drains() { // whoever asked for it wants no event in between to grab
		l.session.drain()
	}
	packets := event()
	// A grab goes before the end of a job that was done at once: the server
	// looks for the next job meanwhile. Nothing else may: a CANT_DO before the
	// end of a job would have gearmand queue that job again.
	other := slices.ContainsFunc(packets, func(p Packet) bool { return p.Type != PacketGrabJobUniq })
	if err := l.link.conn.send(packets, len(packets) > 0 && !other); err != nil {
		return err
	}
	l.worker.closeIfDrained(l.session)
	return nil
}

// end has no event handled any more.
func (l *loop) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
}

// patienceLeft tells whether an answer is waited for, and for how long still.
func (l *loop) patienceLeft(timeout time.Duration) (waits bool, left time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pinged.IsZero() {
		return false, 0
	}
	return true, time.Until(l.lastHeard().Add(timeout))
}

// lastHeard returns when the patience with an unanswered ping began: bytes of
// a long packet on its way are signs of life too.
func (l *loop) lastHeard() time.Time {
	heard := time.Unix(0, l.link.conn.lastRead.Load())
	if heard.Before(l.pinged) {
		return l.pinged
	}
	return heard
}

// news tells the session what callers of the worker changed.
func (l *loop) news() []Packet {
	w := l.worker
	w.mu.Lock()
	functions, generation, waking := w.functions, w.generation, w.needsWaking
	w.needsWaking = false
	w.mu.Unlock()

	var out []Packet
	if generation != l.generation {
		l.generation = generation
		out = l.session.setFunctions(functions)
	}
	out = append(out, l.ended()...)
	if waking {
		out = append(out, l.session.wake()...)
	}
	return out
}

// ended tells the session which jobs have ended.
func (l *loop) ended() []Packet {
	var out []Packet
	for _, job := range l.link.takeEnded() {
		out = append(out, l.session.finished(job.Function)...)
	}
	return out
}

// received turns a packet into an event of the session.
func (l *loop) received(packet Packet) []Packet {
	if !l.heard {
		// Not before: a server of TLS 1.3 refuses a client's certificate only now.
		l.heard = true
		l.logger.Info("connected to the Gearman server", "server", l.worker.Address)
	}
	switch packet.Type {
	case PacketNoop:
		return l.session.noop()
	case PacketNoJob:
		if l.worker.NoJob != nil {
			l.worker.NoJob()
		}
		return l.session.noJob()
	case PacketJobAssignUniq:
		return l.assigned(packet)
	case PacketStatusRes:
		if handle := packet.arg(0); strings.HasPrefix(handle, pingPrefix) {
			l.pinged = time.Time{}
			return l.session.pong(handle)
		}
		l.link.queries.answer(packet)
	case PacketError:
		l.logger.Warn("the Gearman server reports an error",
			"server", l.worker.Address, "code", packet.arg(0), "text", packet.arg(1))
		if l.worker.ServerError != nil {
			l.worker.ServerError(packet.arg(0), packet.arg(1))
		}
	default:
		l.logger.Warn("unexpected packet from the Gearman server", "server", l.worker.Address, "packet", packet.String())
	}
	return nil
}

func (l *loop) assigned(packet Packet) []Packet {
	job, replaced := l.link.assign(packet)
	var out []Packet
	if replaced != nil && replaced.lose() {
		l.logger.With(replaced.logValues()...).Warn("a job is lost: the Gearman server gave its handle to another one",
			"server", l.worker.Address, "handle", job.handle, "other", job.Unique)
		out = l.session.finished(replaced.Function)
	}
	l.worker.Assigned(job)
	job.letGo()
	out = append(out, l.session.assigned(job.Function)...)
	return append(out, l.ended()...) // many a job is done at once
}
