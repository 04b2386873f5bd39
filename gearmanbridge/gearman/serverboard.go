package gearman

import (
	"fmt"
	"slices"
	"strings"
)

// board is what the embedded server knows of functions and jobs. The server's
// lock guards it.
type board struct {
	server    *Server
	host      string
	functions []*boardFunction // newest first, as gearmand lists them
	byName    map[string]*boardFunction
	jobs      []*boardJob // in the order submitted
	byHandle  map[string]*boardJob
	lastJob   int
	lastPeer  int
	lastPlace int
}

// boardFunction is a function name ever heard of. Names stay when the last
// worker leaves.
type boardFunction struct {
	name    string
	workers []*peer     // once for each registration; the next to wake first
	jobs    []*boardJob // queued and running
}

type boardJob struct {
	handle, function, unique string
	payload                  []byte
	priority                 Priority
	background               bool
	clients                  []*peer
	worker                   *peer // nil while queued
	place                    int   // in its queue: higher is later
	retries                  int
	ignored                  bool // gearmand: dropped when it would be assigned
	numerator, denominator   string
}

func (b *board) init(server *Server) {
	b.server = server
	b.host = hostName()
	b.byName = make(map[string]*boardFunction)
	b.byHandle = make(map[string]*boardJob)
}

// function returns the entry of the name, a new one if there is none.
func (b *board) function(name string) *boardFunction {
	function := b.byName[name]
	if function == nil {
		function = &boardFunction{name: name}
		b.byName[name] = function
		b.functions = slices.Insert(b.functions, 0, function)
	}
	return function
}

// register adds a registration of the function, at the front or the back of
// the peer's. Among the function's workers it is always the last to be woken.
func (b *board) register(p *peer, name string, front bool) {
	p.registered[name]++
	function := b.function(name)
	if front {
		p.abilities = slices.Insert(p.abilities, 0, name)
	} else {
		p.abilities = append(p.abilities, name)
	}
	function.workers = append(function.workers, p)
}

// unregister takes every registration of the function from the peer.
func (b *board) unregister(p *peer, name string) {
	delete(p.registered, name)
	p.abilities = slices.DeleteFunc(p.abilities, func(ability string) bool { return ability == name })
	function := b.function(name)
	function.workers = slices.DeleteFunc(function.workers, func(worker *peer) bool { return worker == p })
}

// submission reads a SUBMIT_JOB* packet; ok is false for other packets.
func submission(packetType PacketType) (priority Priority, background, ok bool) {
	switch packetType {
	case PacketSubmitJob:
		return PriorityNormal, false, true
	case PacketSubmitJobHigh:
		return PriorityHigh, false, true
	case PacketSubmitJobLow:
		return PriorityLow, false, true
	case PacketSubmitJobBackground:
		return PriorityNormal, true, true
	case PacketSubmitJobHighBG:
		return PriorityHigh, true, true
	case PacketSubmitJobLowBG:
		return PriorityLow, true, true
	default:
		return 0, false, false
	}
}

func (b *board) add(client *peer, packet Packet, host string) *boardJob {
	priority, background, _ := submission(packet.Type)
	b.lastJob++
	job := &boardJob{
		handle:     fmt.Sprintf("H:%s:%d", host, b.lastJob),
		function:   packet.arg(0),
		unique:     packet.arg(1),
		payload:    packet.Args[2],
		priority:   priority,
		background: background,
	}
	if !background {
		job.clients = []*peer{client}
	}
	b.tail(job)
	b.jobs = append(b.jobs, job)
	function := b.function(job.function)
	function.jobs = append(function.jobs, job)
	b.byHandle[job.handle] = job
	return job
}

func (b *board) remove(job *boardJob) {
	delete(b.byHandle, job.handle)
	isJob := func(other *boardJob) bool { return other == job }
	b.jobs = slices.DeleteFunc(b.jobs, isJob)
	function := b.function(job.function)
	function.jobs = slices.DeleteFunc(function.jobs, isJob)
}

// tail puts a job behind all others.
func (b *board) tail(job *boardJob) {
	b.lastPlace++
	job.place = b.lastPlace
}

// rank orders priorities: high first.
func (p Priority) rank() int {
	return [...]int{PriorityHigh: 0, PriorityNormal: 1, PriorityLow: 2}[p]
}

// first returns the job that is next among those queued and wanted, by
// priority and place, or nil.
func first(jobs []*boardJob, wanted func(*boardJob) bool) *boardJob {
	var best *boardJob
	for _, job := range jobs {
		if job.worker != nil || !wanted(job) {
			continue
		}
		if best == nil || job.priority.rank() < best.priority.rank() ||
			job.priority == best.priority && job.place < best.place {
			best = job
		}
	}
	return best
}

func (j *boardJob) tell(packet Packet) {
	for _, client := range j.clients {
		client.send(packet)
	}
}

// assignment is the answer to a grab. Like gearmand it answers GRAB_JOB_ALL in
// the shape of GRAB_JOB_UNIQ: only a job with a reducer gets JOB_ASSIGN_ALL.
func (j *boardJob) assignment(grab PacketType) Packet {
	packet := response(PacketJobAssignUniq, j.handle, j.function, j.unique)
	if grab == PacketGrabJob {
		packet = response(PacketJobAssign, j.handle, j.function)
	}
	packet.Args = append(packet.Args, j.payload)
	return packet
}

// lost is the event of a connection that ended.
func (b *board) lost(p *peer) {
	for _, name := range slices.Clone(p.abilities) {
		b.unregister(p, name)
	}
	for _, job := range slices.Clone(b.jobs) {
		if b.server.Behaviour == Geard {
			b.geardLost(p, job)
		} else {
			b.gearmandLost(p, job)
		}
	}
}

// count returns the numbers of the `status` command for a function.
func (b *board) count(function *boardFunction) (total, running, workers int) {
	for _, job := range function.jobs {
		if job.worker != nil {
			running++
		}
	}
	return len(function.jobs), running, len(function.workers)
}

// command answers a line of the text protocol.
func (s *Server) command(p *peer, line string) error {
	words := strings.Fields(line)
	name := strings.Join(words[:min(2, len(words))], " ")
	gearmand := s.Behaviour == Gearmand
	switch {
	case name == "status":
		p.sendText(s.board.statusText())
	case name == "workers":
		p.sendText(s.workersText())
	case name == "cancel job" && len(words) > 2:
		p.sendText(s.board.cancel(words[2]))
	case name == "version" && gearmand:
		p.sendText("OK 1.1.20\n")
	case name == "show jobs" && gearmand:
		p.sendText(s.board.jobsText())
	case gearmand:
		unknown := ""
		if len(words) > 0 {
			unknown = words[0]
		}
		p.sendText("ERR UNKNOWN_COMMAND Unknown+server+command" + unknown + "\r\n")
	}
	return nil // geard does not answer what it does not know
}

func (b *board) statusText() string {
	var text strings.Builder
	for _, function := range b.functions {
		total, running, workers := b.count(function)
		fmt.Fprintf(&text, "%s\t%d\t%d\t%d\n", function.name, total, running, workers)
	}
	return text.String() + ".\n"
}

func (s *Server) workersText() string {
	var text strings.Builder
	for _, p := range s.peers {
		clientID := p.clientID
		if clientID == "" {
			clientID = "-"
		}
		fmt.Fprintf(&text, "%d %s %s :", p.number, p.host, clientID)
		for _, ability := range p.abilities {
			text.WriteString(" " + ability)
		}
		text.WriteString("\n")
	}
	return text.String() + ".\n"
}

func (b *board) jobsText() string {
	var text strings.Builder
	for _, job := range b.jobs {
		// The last column tells which jobs gearmand gave to its queue store:
		// the background ones, also if the store keeps nothing, until it
		// ignores them.
		stored := job.background && !job.ignored
		fmt.Fprintf(&text, "%s\t%d\t%s\t%s\n", job.handle, job.retries, boolDigit(job.ignored), boolDigit(stored))
	}
	return text.String() + ".\n"
}

// cancel answers `cancel job HANDLE`.
func (b *board) cancel(handle string) string {
	job := b.byHandle[handle]
	if b.server.Behaviour == Geard {
		if job == nil || job.worker != nil {
			return "ERR UNKNOWN_JOB\n"
		}
		b.remove(job)
		return "OK\n"
	}
	if job == nil {
		return "ERR UNKNOWN_JOB\r\n"
	}
	job.ignored = true // a running one goes on: its worker is not told
	job.tell(response(PacketWorkFail, handle))
	return "OK\r\n"
}
