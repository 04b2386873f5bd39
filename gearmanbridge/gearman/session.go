package gearman

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// phase is what a session has told the server about wanting jobs.
type phase int

const (
	// silent: nothing. The server will send no job and need not wake us.
	silent phase = iota
	// grabbing: at least one GRAB_JOB_UNIQ was sent and has not been answered.
	grabbing
	// asleep: PRE_SLEEP was sent after NO_JOB. A NOOP will come with the
	// next job.
	asleep
)

// pingPrefix starts the job handles of pings, which no server gives. Asking
// for the status of a handle is the only ping that gearmand and geard both
// answer (handles over 63 bytes would make gearmand close the connection).
const pingPrefix = "worker-ping:"

// session decides what a worker says on one connection. It is a pure state
// machine: each method is an event and returns the packets to send for it, in
// order. It knows no time and no network and is not safe for concurrent use.
//
// It never has more than window GRAB_JOB_UNIQ outstanding, sends neither that nor
// PRE_SLEEP unless reserve or free says so, and never unregisters a function
// while a job of it runs or may be on its way: gearmand would requeue that job.
type session struct {
	// reserve, free and release are the Worker's fields of these names.
	reserve func() bool
	free    func() bool
	release func()

	// window is how many GRAB_JOB_UNIQ may be outstanding: more than one only
	// while job follows job, and only where reserve does not count.
	window int

	phase phase
	grabs int  // outstanding
	flows bool // the last answer was a job
	pings int
	// overdue is the first ping sent after the outstanding GRAB_JOB_UNIQ and
	// after the last answer to one, 0 for none.
	overdue  int
	draining bool

	registered map[string]bool // functions the server was told of
	unwanted   map[string]bool // those of them that are no longer to be offered
	running    map[string]int  // unfinished jobs by function
}

// newSession is a session that reserves nothing, whose slots are simply free
// or not.
func newSession(free func() bool) *session {
	return &session{
		reserve:    free,
		free:       free,
		release:    func() {},
		window:     1,
		registered: make(map[string]bool),
		unwanted:   make(map[string]bool),
		running:    make(map[string]int),
	}
}

// start is the event of a new connection. The functions are registered in
// random order because gearmand prefers the one registered last.
func (s *session) start(clientID string, functions []string) []Packet {
	var packets []Packet
	if clientID != "" {
		packets = append(packets, request(PacketSetClientID, clientID))
	}
	functions = slices.Clone(functions)
	rand.Shuffle(len(functions), func(i, j int) { functions[i], functions[j] = functions[j], functions[i] })
	return append(packets, s.setFunctions(functions)...)
}

// setFunctions is the event of another set of functions to offer.
func (s *session) setFunctions(functions []string) []Packet {
	var packets []Packet
	s.unwanted = maps.Clone(s.registered)
	for _, function := range functions {
		delete(s.unwanted, function)
		if !s.registered[function] {
			s.registered[function] = true
			packets = append(packets, request(PacketCanDo, function))
		}
	}
	added := len(packets) > 0
	switch {
	case s.phase == grabbing:
		return packets // the answer, or PRE_SLEEP after it, brings the rest
	case s.phase == asleep && !added:
		return append(packets, s.dropUnwanted()...)
	default:
		// No server wakes a sleeper for a function it adds.
		return append(packets, s.grab()...)
	}
}

// drain is the event of the worker's wish to get no more jobs.
func (s *session) drain() {
	s.draining = true
	if s.phase != grabbing { // else the answer may be a job, which needs its slot
		s.release()
	}
}

// quiet reports that no job runs and none can arrive.
func (s *session) quiet() bool {
	return s.draining && s.phase != grabbing && len(s.running) == 0
}

// noop is the event of a NOOP, which servers may send at any time. While
// grabbing it needs no care: if a job waits still, PRE_SLEEP brings another.
func (s *session) noop() []Packet {
	if s.phase != asleep {
		return nil
	}
	return s.grab()
}

// noJob is the event of the answer NO_JOB.
func (s *session) noJob() []Packet {
	if s.phase != grabbing {
		return nil
	}
	s.release()
	if s.answered(false); s.grabs > 0 {
		return nil // another answer comes
	}
	s.phase = silent
	packets := s.dropUnwanted()
	if s.wantsJobs() && s.free() {
		s.phase = asleep
		packets = append(packets, request(PacketPreSleep))
	}
	return packets
}

// assigned is the event of a job of the function, after its owner has it.
func (s *session) assigned(function string) []Packet {
	s.running[function]++
	if s.phase != grabbing {
		return nil
	}
	var packets []Packet
	flowed := s.flows
	if s.answered(true); s.grabs == 0 {
		packets = s.grab()
	}
	// Functions that are no longer wanted go only when no answer is awaited.
	for flowed && s.phase == grabbing && s.grabs < s.window && s.wantsJobs() && len(s.unwanted) == 0 && s.reserve() {
		s.grabs++
		packets = append(packets, request(PacketGrabJobUniq))
	}
	return packets
}

// answered notes the answer to a GRAB_JOB_UNIQ.
func (s *session) answered(job bool) {
	s.grabs--
	s.flows, s.overdue = job, 0
}

// finished is the event of a job of the function that has ended, after its
// finishing packet was sent.
func (s *session) finished(function string) []Packet {
	if s.running[function]--; s.running[function] <= 0 {
		delete(s.running, function)
	}
	switch s.phase {
	case silent:
		return s.grab()
	case asleep:
		return s.dropUnwanted()
	default:
		return nil // after the outstanding answer
	}
}

// wake is the event of the owner's word that free may have become true.
func (s *session) wake() []Packet {
	if s.phase != silent {
		return nil
	}
	return s.grab()
}

// tick is the event of the ping interval. It heals a lost NOOP and a wake
// nobody called, and asks for an answer that proves the server is there.
func (s *session) tick() []Packet {
	var packets []Packet
	if s.phase != grabbing {
		packets = s.grab()
	}
	s.pings++
	if s.phase == grabbing && s.overdue == 0 {
		s.overdue = s.pings
	}
	return append(packets, request(PacketGetStatus, pingPrefix+strconv.Itoa(s.pings)))
}

// pong is the event of the answer to the ping of a tick. Servers answer in
// order, so what was outstanding before that tick will not be answered any
// more: it met an ERROR.
func (s *session) pong(handle string) []Packet {
	ping, err := strconv.Atoi(strings.TrimPrefix(handle, pingPrefix))
	if err != nil || s.phase != grabbing || s.overdue == 0 || ping < s.overdue {
		return nil
	}
	return s.grab()
}

// grab asks for a job if one may be had, and is silent if not. No answer to a
// GRAB_JOB_UNIQ may be awaited.
func (s *session) grab() []Packet {
	s.phase, s.grabs, s.overdue = silent, 0, 0
	packets := s.dropUnwanted()
	switch {
	case !s.wantsJobs():
		s.release()
	case s.reserve():
		s.phase, s.grabs = grabbing, 1
		packets = append(packets, request(PacketGrabJobUniq))
	}
	return packets
}

func (s *session) wantsJobs() bool { return !s.draining && len(s.registered) > 0 }

// dropUnwanted unregisters the functions no longer wanted that have no job
// here. No GRAB_JOB_UNIQ may be outstanding: its answer could be such a job.
func (s *session) dropUnwanted() []Packet {
	var gone []string
	for function := range s.unwanted {
		if s.running[function] == 0 {
			gone = append(gone, function)
		}
	}
	slices.Sort(gone)
	var packets []Packet
	for _, function := range gone {
		delete(s.registered, function)
		delete(s.unwanted, function)
		packets = append(packets, request(PacketCantDo, function))
	}
	return packets
}
