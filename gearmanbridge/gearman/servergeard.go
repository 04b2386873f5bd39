package gearman

import (
	"fmt"
	"slices"
)

// geardPacket does what geard does with a packet. An error closes the
// connection, as an exception in its packet handler does.
func (b *board) geardPacket(p *peer, packet Packet) error {
	switch packet.Type {
	case PacketCanDo:
		if name := packet.arg(0); !p.can(name) {
			b.register(p, name, false)
		}
	case PacketCantDo:
		name := packet.arg(0)
		if !p.can(name) {
			return fmt.Errorf("CANT_DO of %q, which was not registered", name)
		}
		b.unregister(p, name)
	case PacketResetAbilities:
		for _, name := range slices.Clone(p.abilities) {
			b.unregister(p, name)
		}
	case PacketSetClientID:
		p.clientID = packet.arg(0)
	case PacketSubmitJob, PacketSubmitJobHigh, PacketSubmitJobLow:
		b.function(packet.arg(0))
		job := b.add(p, packet, p.host)
		p.send(response(PacketJobCreated, job.handle))
		b.geardWake()
	case PacketGrabJobUniq:
		b.geardGrab(p)
	case PacketPreSleep:
		p.sleeping = true
		if first(b.jobs, func(job *boardJob) bool { return p.can(job.function) }) != nil {
			b.geardWake()
		}
	case PacketGetStatus:
		p.send(b.geardStatus(packet.arg(0)))
	case PacketWorkStatus, PacketWorkData, PacketWorkWarning,
		PacketWorkComplete, PacketWorkFail, PacketWorkException:
		b.geardWork(packet)
	default:
		if _, known := packet.Type.argumentCount(); !known {
			return fmt.Errorf("%w: %v", ErrProtocol, packet.Type)
		}
		// Known to it by name only: no answer at all.
	}
	return nil
}

// geardWake sends NOOP to every sleeper, whatever its functions. Grabbing does
// not end sleep, so a NOOP may also come between a grab and its answer.
func (b *board) geardWake() {
	for _, p := range b.server.peers {
		if p.sleeping {
			p.sleeping = false
			p.send(response(PacketNoop))
		}
	}
}

// geardGrab assigns strictly by priority, then first in first out, across the
// functions of the worker.
func (b *board) geardGrab(p *peer) {
	job := first(b.jobs, func(job *boardJob) bool { return p.can(job.function) })
	if job == nil {
		p.send(response(PacketNoJob))
		return
	}
	job.worker = p
	p.send(job.assignment(PacketGrabJobUniq))
}

func (b *board) geardStatus(handle string) Packet {
	job := b.byHandle[handle]
	if job == nil {
		return response(PacketStatusRes, handle, "0", "0", "", "")
	}
	return response(PacketStatusRes, handle, "1", boolDigit(job.worker != nil), job.numerator, job.denominator)
}

func boolDigit(value bool) string {
	if value {
		return "1"
	}
	return "0"
}

// geardWork passes a WORK_* packet on. It does not ask whose job it is.
func (b *board) geardWork(packet Packet) {
	job := b.byHandle[packet.arg(0)]
	if job == nil {
		return
	}
	if packet.Type == PacketWorkStatus {
		job.numerator, job.denominator = packet.arg(1), packet.arg(2)
	}
	packet.Response = true
	job.tell(packet)
	switch packet.Type {
	case PacketWorkComplete, PacketWorkFail, PacketWorkException:
		b.remove(job)
	default: // the job goes on
	}
}

// geardLost ends the jobs of a lost connection, client's and worker's alike.
func (b *board) geardLost(p *peer, job *boardJob) {
	if job.worker == p {
		// geard sends this one with the magic of a request.
		job.tell(request(PacketWorkFail, job.handle))
		b.remove(job)
	} else if slices.Contains(job.clients, p) {
		b.remove(job)
	}
}
