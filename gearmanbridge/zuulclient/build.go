package zuulclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

var (
	// ErrNotCanceled says that a build was neither queued nor had it reported
	// its start. Zuul forgets such a build, and it runs on.
	ErrNotCanceled = errors.New("the build is neither queued nor started: Zuul gives up and it runs on")
	// ErrNoManager says that a build started without naming who can stop it.
	// Zuul submits stop:None, which waits in the server for ever; this
	// package does not.
	ErrNoManager = errors.New("the build named no manager to stop it")
)

// Build is a build that was submitted.
type Build struct {
	client *Client
	task   *gearman.Task
	// forget ends the following of a build that left the queue.
	forget    context.CancelFunc
	following context.Context

	mu       sync.Mutex
	observer *observer
	changed  chan struct{} // closed and replaced at each change
	err      error         // why the build ended without a final packet
}

func newBuild(client *Client, task *gearman.Task, state State) *Build {
	b := &Build{client: client, task: task, observer: newObserver(client.Dialect, state), changed: make(chan struct{})}
	b.following, b.forget = context.WithCancel(context.Background())
	return b
}

// follow takes the packets until the build ends.
func (b *Build) follow() {
	defer b.forget()
	for {
		event, err := b.task.Next(b.following)
		switch {
		case errors.Is(err, io.EOF) || b.following.Err() != nil:
			return
		case err != nil:
			b.change(func(o *observer) {
				if !o.state.Ended() {
					b.err = err
					o.complete(time.Now()) // Zuul's onDisconnect does so
				}
			})
			return
		}
		b.change(func(o *observer) { o.observe(Packet{Event: event, Received: time.Now()}) })
	}
}

func (b *Build) change(how func(*observer)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	how(b.observer)
	close(b.changed)
	b.changed = make(chan struct{})
}

// State returns what Zuul knows of the build now.
func (b *Build) State() State {
	state, _ := b.Observe()
	return state
}

// Observe returns what Zuul knows of the build now, and a channel that is
// closed at the next change.
func (b *Build) Observe() (State, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	state := b.observer.state
	state.Packets = state.Packets[:len(state.Packets):len(state.Packets)]
	state.Violations = state.Violations[:len(state.Violations):len(state.Violations)]
	return state, b.changed
}

// Err returns why the build ended without a final packet of its server, nil if
// it did not. The error wraps gearman.ErrConnectionLost.
func (b *Build) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// Await waits until the condition holds and returns the state in which it
// does. If the build ends or ctx is done before, it returns the last state and
// an error.
func (b *Build) Await(ctx context.Context, condition func(State) bool) (State, error) {
	for {
		state, changed := b.Observe()
		if condition(state) {
			return state, nil
		}
		if state.Ended() {
			return state, fmt.Errorf("build %s of %s ended as %s before", state.UUID, state.Job, state.Outcome)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return state, fmt.Errorf("build %s of %s: %w", state.UUID, state.Job, context.Cause(ctx))
		}
	}
}

// Wait waits for the end of the build. It returns Err if that was the end of
// its connection.
func (b *Build) Wait(ctx context.Context) (State, error) {
	state, err := b.Await(ctx, State.Ended)
	if err == nil {
		err = b.Err()
	}
	return state, err
}

// Cancellation is how a build was cancelled.
type Cancellation struct {
	// Dequeued is true if it was taken from the server's queue. It has ended
	// then. gearmand says so of running jobs too, whose workers it does not
	// tell.
	Dequeued bool
	// Stop is the stop: job otherwise. Zuul does not wait for its answer.
	Stop *gearman.Task
}

// Cancel cancels the build as Zuul does. A started one, ended or not, is
// stopped with a stop: job. Any other is taken from the queue; if it is not
// there, Cancel waits for CancelPause and looks once more whether it started,
// else the error is ErrNotCanceled. ErrNoManager is the other error of its own.
func (b *Build) Cancel(ctx context.Context) (Cancellation, error) {
	b.change(func(o *observer) { o.state.Canceled = true })
	if state := b.State(); b.client.Dialect.started(state.Number) {
		return b.stop(ctx, state)
	}
	dequeued, err := b.dequeue(ctx)
	if dequeued || err != nil {
		return Cancellation{Dequeued: dequeued}, err
	}
	pause := b.client.CancelPause
	if pause == 0 {
		pause = DefaultCancelPause
	}
	select {
	case <-time.After(pause):
	case <-ctx.Done():
		return Cancellation{}, fmt.Errorf("cancel build %s: %w", b.task.Unique, context.Cause(ctx))
	}
	if state := b.State(); truthy(state.Number) {
		return b.stop(ctx, state)
	}
	return Cancellation{}, fmt.Errorf("cancel build %s: %w", b.task.Unique, ErrNotCanceled)
}

// dequeue takes the job from the server's queue, and then Zuul forgets it.
func (b *Build) dequeue(ctx context.Context) (bool, error) {
	admin, err := b.client.DialAdmin(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = admin.Close() }()
	err = admin.CancelJob(ctx, b.task.Handle)
	if errors.Is(err, gearman.ErrUnknownJob) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	b.change(func(o *observer) {
		if !o.state.Ended() {
			o.state.Completed, o.state.Outcome = time.Now(), Canceled
		}
	})
	b.forget()
	return true, nil
}

func (b *Build) stop(ctx context.Context, state State) (Cancellation, error) {
	if state.Manager == "" {
		return Cancellation{}, fmt.Errorf("stop build %s: %w", state.UUID, ErrNoManager)
	}
	priority, argument := b.client.Dialect.stop(state)
	task, err := b.client.Gearman.Submit(ctx, priority, "stop:"+state.Manager, NewUUID(), argument)
	return Cancellation{Stop: task}, err
}

// Describe sends a description, HTML of any size, to the worker of a started
// build as Zuul does on its start and end and with reports. It returns the
// set_description: job; Zuul does not wait for its answer. The error wraps
// ErrNotRegistered if nobody serves the function.
func (b *Build) Describe(ctx context.Context, html string) (*gearman.Task, error) {
	state := b.State()
	if state.Manager == "" {
		return nil, fmt.Errorf("describe build %s: %w", state.UUID, ErrNoManager)
	}
	function := "set_description:" + state.Manager
	registered, err := b.client.Registered(ctx, function)
	if err != nil {
		return nil, err
	}
	if !registered {
		return nil, notRegistered(function)
	}
	argument := b.client.Dialect.description(state, html)
	return b.client.Gearman.Submit(ctx, gearman.PriorityLow, function, NewUUID(), argument)
}
