package gearman

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
)

// maxUnique is the longest unique gearmand takes, in bytes.
const maxUnique = 64

// gearmandPacket does what gearmand does with a packet. An error closes the
// connection.
func (b *board) gearmandPacket(p *peer, packet Packet) error {
	if packet.Response {
		p.send(response(PacketError, "INVALID_MAGIC", "Request magic expected"))
		return nil
	}
	switch packet.Type {
	case PacketCanDo, PacketCanDoTimeout: // time-outs are not kept here
		b.register(p, packet.arg(0), true) // also a second time
	case PacketCantDo:
		b.gearmandForget(p, packet.arg(0))
	case PacketResetAbilities:
		for _, name := range slices.Clone(p.abilities) {
			b.gearmandForget(p, name)
		}
	case PacketSetClientID:
		p.clientID = string(packet.Args[0][:min(len(packet.Args[0]), MaxClientID)])
	case PacketEchoReq:
		p.send(Packet{Response: true, Type: PacketEchoRes, Args: packet.Args})
	case PacketOptionReq:
		if packet.arg(0) != "exceptions" {
			p.send(response(PacketError, "UNKNOWN_OPTION", "Server does not recognize given option"))
			return nil
		}
		p.exceptions = true
		p.send(response(PacketOptionRes, "exceptions"))
	case PacketGrabJob, PacketGrabJobUniq, PacketGrabJobAll:
		b.gearmandGrab(p, packet.Type)
	case PacketPreSleep:
		p.sleeping = true
		if b.gearmandWaiting(p) {
			p.noopSent = true
			p.send(response(PacketNoop))
		}
	case PacketGetStatus:
		p.send(b.gearmandStatus(packet.arg(0)))
	case PacketGetStatusUnique:
		p.send(b.gearmandStatusUnique(packet.arg(0)))
	case PacketWorkStatus, PacketWorkData, PacketWorkWarning,
		PacketWorkComplete, PacketWorkFail, PacketWorkException:
		return b.gearmandWork(p, packet)
	default:
		if _, _, ok := submission(packet.Type); ok {
			b.gearmandSubmit(p, packet)
			return nil
		}
		if _, known := packet.Type.argumentCount(); !known || packet.Type == PacketMassDo {
			return fmt.Errorf("%w: %v", ErrProtocol, packet.Type)
		}
		p.send(response(PacketError, "INVALID_COMMAND", "Command not expected"))
	}
	return nil
}

// gearmandForget unregisters the function and puts the worker's running jobs of
// it back in the queue.
func (b *board) gearmandForget(p *peer, name string) {
	if !p.can(name) {
		return
	}
	b.unregister(p, name)
	for _, job := range slices.Clone(b.function(name).jobs) {
		if job.worker == p {
			b.gearmandRequeue(job)
		}
	}
}

// gearmandSubmit queues a job, or joins the client to the one of the same
// function and unique. The unique "-" stands for the payload.
func (b *board) gearmandSubmit(p *peer, packet Packet) {
	unique := packet.arg(1)
	if len(unique) > maxUnique {
		p.send(response(PacketError, "ARGUMENT_TOO_LARGE", "Unique value too large"))
		return
	}
	b.function(packet.arg(0))
	if job := b.same(packet); job != nil {
		if _, background, _ := submission(packet.Type); !background {
			job.clients = append(job.clients, p)
		}
		p.send(response(PacketJobCreated, job.handle))
		return
	}
	job := b.add(p, packet, b.host)
	p.send(response(PacketJobCreated, job.handle))
	b.gearmandWake(job.function)
}

func (b *board) same(packet Packet) *boardJob {
	unique := packet.arg(1)
	if unique == "" {
		return nil
	}
	for _, job := range b.function(packet.arg(0)).jobs {
		if job.unique == unique && (unique != "-" || bytes.Equal(job.payload, packet.Args[2])) {
			return job
		}
	}
	return nil
}

// gearmandWake sends NOOP to workers of the function that sleep and had none
// since their last grab.
func (b *board) gearmandWake(name string) {
	function := b.function(name)
	sent := 0
	for range len(function.workers) {
		if b.server.WorkerWakeup > 0 && sent >= b.server.WorkerWakeup {
			return
		}
		p := function.workers[0]
		function.workers = append(function.workers[1:], p)
		if p.sleeping && !p.noopSent {
			p.noopSent = true
			p.send(response(PacketNoop))
			sent++
		}
	}
}

// gearmandWaiting reports whether a job waits for the worker.
func (b *board) gearmandWaiting(p *peer) bool {
	return slices.ContainsFunc(p.abilities, func(name string) bool {
		return first(b.function(name).jobs, func(job *boardJob) bool { return !job.ignored }) != nil
	})
}

// gearmandGrab assigns from the first function of the worker that has jobs:
// priorities count only within a function.
func (b *board) gearmandGrab(p *peer, grab PacketType) {
	p.sleeping, p.noopSent = false, false
	for i, name := range p.abilities {
		job := b.gearmandNext(b.function(name))
		if job == nil {
			continue
		}
		if b.server.RoundRobin {
			p.abilities = append(slices.Delete(p.abilities, i, i+1), name)
		}
		job.worker = p
		p.send(job.assignment(grab))
		return
	}
	p.send(response(PacketNoJob))
}

// gearmandNext returns the next job of the function and drops those before it
// that nobody waits for.
func (b *board) gearmandNext(function *boardFunction) *boardJob {
	for {
		job := first(function.jobs, func(*boardJob) bool { return true })
		if job == nil || !job.ignored {
			return job
		}
		b.remove(job)
	}
}

func (b *board) gearmandStatus(handle string) Packet {
	job := b.byHandle[handle]
	if job == nil {
		return response(PacketStatusRes, handle, "0", "0", "0", "0")
	}
	return response(PacketStatusRes, handle, "1", boolDigit(job.worker != nil),
		lower32(job.numerator), lower32(job.denominator))
}

// gearmandStatusUnique tells of the newest job with the unique, whatever its
// function.
func (b *board) gearmandStatusUnique(unique string) Packet {
	for _, job := range slices.Backward(b.jobs) {
		if job.unique == unique {
			return response(PacketStatusResUnique, unique, "1", boolDigit(job.worker != nil),
				lower32(job.numerator), lower32(job.denominator), strconv.Itoa(len(job.clients)))
		}
	}
	return response(PacketStatusResUnique, unique, "0", "0", "0", "0", "0")
}

// lower32 is what gearmand keeps of a number: its lower 32 bits, 0 for text
// that is none.
func lower32(text string) string {
	value, _ := strconv.ParseInt(text, 10, 64)
	return strconv.FormatUint(uint64(uint32(value)), 10)
}

// gearmandWork passes a WORK_* packet on if the job runs on this connection.
func (b *board) gearmandWork(p *peer, packet Packet) error {
	job := b.byHandle[packet.arg(0)]
	if job == nil || job.worker != p {
		p.send(response(PacketError, "JOB_NOT_FOUND", "Job given in work result not found"))
		return nil
	}
	switch packet.Type {
	case PacketWorkStatus:
		if len(packet.Args[2]) > 11 {
			return fmt.Errorf("%w: WORK_STATUS denominator of %d digits", ErrProtocol, len(packet.Args[2]))
		}
		job.numerator, job.denominator = packet.arg(1), packet.arg(2)
	case PacketWorkException:
		b.gearmandException(job, packet)
		return nil
	default: // passed on as they are
	}
	packet.Response = true
	job.tell(packet)
	if packet.Type == PacketWorkComplete || packet.Type == PacketWorkFail {
		b.remove(job)
	}
	return nil
}

// gearmandException ends a job; clients that did not ask for exceptions see a
// failure.
func (b *board) gearmandException(job *boardJob, packet Packet) {
	packet.Response = true
	for _, client := range job.clients {
		if client.exceptions {
			client.send(packet)
		} else {
			client.send(response(PacketWorkFail, job.handle))
		}
	}
	b.remove(job)
}

// gearmandRequeue puts a running job at the tail of its queue, with the same
// handle and unique.
func (b *board) gearmandRequeue(job *boardJob) {
	job.retries++
	if job.retries == b.server.JobRetries {
		job.tell(response(PacketWorkFail, job.handle))
		b.remove(job)
		return
	}
	job.worker = nil
	job.numerator, job.denominator = "", ""
	b.tail(job)
	b.gearmandWake(job.function)
}

// gearmandLost requeues the jobs of a lost worker and marks those nobody
// waits for any more.
func (b *board) gearmandLost(p *peer, job *boardJob) {
	if slices.Contains(job.clients, p) {
		job.clients = slices.DeleteFunc(job.clients, func(client *peer) bool { return client == p })
		if len(job.clients) == 0 {
			job.ignored = true
		}
	}
	if job.worker == p {
		b.gearmandRequeue(job)
	}
}
