package gearman

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"sync"
)

// Event is a WORK_* packet about a submitted job.
type Event struct {
	// Type is PacketWorkData, PacketWorkWarning, PacketWorkStatus,
	// PacketWorkComplete, PacketWorkFail or PacketWorkException.
	Type PacketType
	// Data is what came with it, nil for PacketWorkStatus and PacketWorkFail.
	Data []byte
	// Numerator and Denominator are those of PacketWorkStatus, 0 where they
	// were no numbers.
	Numerator, Denominator int64
}

// Final reports whether the job ended with the event.
func (e Event) Final() bool {
	return e.Type == PacketWorkComplete || e.Type == PacketWorkFail || e.Type == PacketWorkException
}

func newEvent(packet Packet) Event {
	event := Event{Type: packet.Type}
	switch packet.Type {
	case PacketWorkStatus:
		event.Numerator, _ = strconv.ParseInt(packet.arg(1), 10, 64)
		event.Denominator, _ = strconv.ParseInt(packet.arg(2), 10, 64)
	case PacketWorkFail:
	default:
		event.Data = packet.Args[1]
	}
	return event
}

// Task is a submitted job as its Client sees it.
type Task struct {
	Function, Unique string
	// Handle is the server's name for the job.
	Handle string

	created chan struct{}
	refused error

	mu     sync.Mutex
	events []Event
	more   chan struct{} // closed and replaced at each change
	ended  error         // what Next returns after the last event
}

func newTask(function, unique string) *Task {
	return &Task{Function: function, Unique: unique, created: make(chan struct{}), more: make(chan struct{})}
}

func (t *Task) add(event Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, event)
	if event.Final() {
		t.ended = io.EOF
	}
	t.change()
}

func (t *Task) lose(reason error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = reason
	t.change()
}

// change needs t.mu.
func (t *Task) change() {
	close(t.more)
	t.more = make(chan struct{})
}

// Next returns the next event of the job, waiting for it. After the final one
// it returns io.EOF; if the connection is lost before, an error that wraps
// ErrConnectionLost. Events are kept until taken, however many they are.
func (t *Task) Next(ctx context.Context) (Event, error) {
	for {
		t.mu.Lock()
		if len(t.events) > 0 {
			event := t.events[0]
			t.events = t.events[1:]
			t.mu.Unlock()
			return event, nil
		}
		ended, more := t.ended, t.more
		t.mu.Unlock()
		if ended != nil {
			return Event{}, ended
		}
		select {
		case <-more:
		case <-ctx.Done():
			return Event{}, fmt.Errorf("gearman: waiting for job %s of %s: %w", t.Handle, t.Function, context.Cause(ctx))
		}
	}
}

// Wait passes over events until the final one and returns it.
func (t *Task) Wait(ctx context.Context) (Event, error) {
	for {
		event, err := t.Next(ctx)
		if err != nil || event.Final() {
			return event, err
		}
	}
}
