package gearman

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// sessionModel is a session, a server that behaves as either real one may, and
// the two directions of the wire between them, where packets take any time.
type sessionModel struct {
	t       *rapid.T
	session *session

	// The owner of the session.
	allowed  bool
	capacity int
	window   int  // with more than 1 slots are not counted
	reserved bool // a slot, for the grabs on their way
	wanted   []string
	running  []string // functions of the jobs the session was told of
	drained  bool

	up, down []Packet // on the way to the server, from the server

	// The server.
	registered map[string]bool
	queue      []string // functions of the jobs that wait
	assigned   []string // functions of the jobs that run
	sleeping   bool
	noopSent   bool
	rearms     bool // PRE_SLEEP alone allows another NOOP (geard)
}

var modelFunctions = []string{"a", "b", "c"}

func newSessionModel(t *rapid.T) *sessionModel {
	m := &sessionModel{t: t, allowed: true, capacity: 2, wanted: []string{"a"}, rearms: rapid.Bool().Draw(t, "rearms"),
		window: rapid.IntRange(1, 3).Draw(t, "window")}
	m.connect()
	return m
}

func (m *sessionModel) free() bool {
	return m.allowed && (m.window > 1 || len(m.running) < m.capacity)
}

func (m *sessionModel) reserve() bool {
	m.reserved = m.reserved || m.free()
	return m.reserved
}

func (m *sessionModel) release() { m.reserved = false }

// connect begins a connection: the jobs of the one before are queued again.
func (m *sessionModel) connect() {
	m.queue = append(m.queue, m.assigned...)
	m.assigned, m.running, m.up, m.down = nil, nil, nil, nil
	m.registered = make(map[string]bool)
	m.sleeping, m.noopSent = false, false
	m.release()
	m.session = newSession(m.free)
	m.session.reserve, m.session.release, m.session.window = m.reserve, m.release, m.window
	if m.drained {
		m.session.drain()
	}
	m.say(m.session.start("", m.wanted))
}

// say puts what the session answers on the wire and checks what is always so.
func (m *sessionModel) say(packets []Packet) {
	for _, packet := range packets {
		switch packet.Type {
		case PacketGrabJobUniq, PacketPreSleep:
			if packet.Type == PacketPreSleep && !m.free() {
				m.t.Fatal("PRE_SLEEP while not free")
			}
			if m.drained {
				m.t.Fatalf("%v while draining", packet.Type)
			}
		}
	}
	if grabbing := m.session.phase == grabbing; m.window == 1 && grabbing != m.reserved {
		m.t.Fatalf("a slot is reserved: %v, a grab is on its way: %v", m.reserved, grabbing)
	}
	m.up = append(m.up, packets...)
	grabs := 0
	for _, packet := range m.up {
		if packet.Type == PacketGrabJobUniq {
			grabs++
		}
	}
	for _, packet := range m.down {
		if packet.Type == PacketNoJob || packet.Type == PacketJobAssignUniq {
			grabs++
		}
	}
	if grabs > m.window {
		m.t.Fatalf("%d grabs outstanding", grabs)
	}
}

// serve has the server take a packet. lose makes it answer a grab with an
// ERROR.
func (m *sessionModel) serve(lose bool) {
	packet := m.up[0]
	m.up = m.up[1:]
	name := packet.arg(0)
	switch packet.Type {
	case PacketCanDo:
		if m.registered[name] {
			m.t.Fatalf("CAN_DO %s a second time", name)
		}
		m.registered[name] = true
	case PacketCantDo:
		if !m.registered[name] {
			m.t.Fatalf("CANT_DO %s, which is not registered: geard hangs up", name)
		}
		if slices.Contains(m.assigned, name) {
			m.t.Fatalf("CANT_DO %s while a job of it runs: gearmand requeues it", name)
		}
		delete(m.registered, name)
	case PacketGrabJobUniq:
		m.sleeping, m.noopSent = false, false
		m.answerGrab(lose)
	case PacketPreSleep:
		m.sleeping = true
		if m.rearms {
			m.noopSent = false
		}
		if slices.ContainsFunc(m.queue, func(f string) bool { return m.registered[f] }) {
			m.noop()
		}
	case PacketGetStatus:
		m.down = append(m.down, response(PacketStatusRes, name, "0", "0", "0", "0"))
	case PacketWorkComplete:
		m.assigned = remove(m.assigned, name)
	}
}

func (m *sessionModel) answerGrab(lose bool) {
	if lose {
		m.down = append(m.down, response(PacketError, "code", "text"))
		return
	}
	for i, function := range m.queue {
		if m.registered[function] {
			m.queue = slices.Delete(m.queue, i, i+1)
			m.assigned = append(m.assigned, function)
			m.down = append(m.down, response(PacketJobAssignUniq, "handle", function, "", ""))
			return
		}
	}
	m.down = append(m.down, response(PacketNoJob))
}

func (m *sessionModel) noop() {
	if m.sleeping && !m.noopSent {
		m.noopSent = true
		m.down = append(m.down, response(PacketNoop))
	}
}

// deliver gives the session a packet.
func (m *sessionModel) deliver() {
	packet := m.down[0]
	m.down = m.down[1:]
	switch packet.Type {
	case PacketNoop:
		m.say(m.session.noop())
	case PacketNoJob:
		m.say(m.session.noJob())
	case PacketStatusRes:
		m.say(m.session.pong(packet.arg(0)))
	case PacketJobAssignUniq:
		m.running = append(m.running, packet.arg(1))
		m.release()
		m.say(m.session.assigned(packet.arg(1)))
	}
}

// remove takes one value out of a list.
func remove(list []string, value string) []string {
	i := slices.Index(list, value)
	return slices.Delete(slices.Clone(list), i, i+1)
}

// settle lets all packets arrive.
func (m *sessionModel) settle() {
	for range 10000 {
		switch {
		case len(m.up) > 0:
			m.serve(false)
		case len(m.down) > 0:
			m.deliver()
		default:
			return
		}
	}
	m.t.Fatal("the session and the server talk without end")
}

func (m *sessionModel) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"serve": func(t *rapid.T) {
			if len(m.up) == 0 {
				t.Skip()
			}
			m.serve(rapid.IntRange(0, 9).Draw(t, "lose") == 0)
		},
		"deliver": func(t *rapid.T) {
			if len(m.down) == 0 {
				t.Skip()
			}
			m.deliver()
		},
		"submit": func(t *rapid.T) {
			function := rapid.SampledFrom(modelFunctions).Draw(t, "function")
			m.queue = append(m.queue, function)
			if m.registered[function] {
				m.noop()
			}
		},
		"spurious NOOP": func(*rapid.T) { m.down = append(m.down, response(PacketNoop)) },
		"finish": func(t *rapid.T) {
			if len(m.running) == 0 {
				t.Skip()
			}
			function := rapid.SampledFrom(m.running).Draw(t, "function")
			m.running = remove(m.running, function)
			m.up = append(m.up, request(PacketWorkComplete, function))
			m.say(m.session.finished(function))
		},
		"forbid": func(*rapid.T) { m.allowed = false },
		"allow":  func(*rapid.T) { m.allowed = true; m.say(m.session.wake()) },
		"functions": func(t *rapid.T) {
			m.wanted = rapid.SliceOfDistinct(rapid.SampledFrom(modelFunctions), rapid.ID[string]).Draw(t, "functions")
			m.say(m.session.setFunctions(m.wanted))
		},
		"settle": func(*rapid.T) { m.settle() },
		"tick":   func(*rapid.T) { m.say(m.session.tick()) },
		"lose":   func(*rapid.T) { m.connect() },
	}
}

// checkAlive requires that every job of a wanted function arrives once the
// owner has room and says so.
func (m *sessionModel) checkAlive() {
	m.settle()
	if m.session.phase == grabbing { // it met an ERROR
		m.say(m.session.tick())
		m.settle()
	}
	m.allowed, m.capacity = true, 1000
	m.say(m.session.wake())
	m.settle()
	for _, function := range m.wanted {
		if slices.Contains(m.queue, function) {
			m.t.Fatalf("a job of %s is never grabbed; phase %d", function, m.session.phase)
		}
		if !m.registered[function] {
			m.t.Fatalf("%s is not registered", function)
		}
	}
	for function := range m.registered {
		if !slices.Contains(m.wanted, function) && !slices.Contains(m.assigned, function) {
			m.t.Fatalf("%s is still registered", function)
		}
	}
}

func TestSessionProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newSessionModel(t)
		t.Repeat(m.actions())
		m.checkAlive()
	})
}

func TestSessionDrainProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newSessionModel(t)
		t.Repeat(m.actions())
		m.drained = true
		m.session.drain()
		t.Repeat(m.actions())
		m.settle()
		m.say(m.session.tick())
		m.settle()
		if quiet := m.session.quiet(); quiet != (len(m.running) == 0) {
			t.Fatalf("quiet is %v with %d jobs running", quiet, len(m.running))
		}
	})
}
