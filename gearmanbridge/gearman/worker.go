package gearman

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// The timing of a Worker whose fields say nothing else. A dead server is
// noticed within DefaultPingInterval + DefaultPingTimeout.
const (
	DefaultPingInterval   = 30 * time.Second
	DefaultPingTimeout    = 30 * time.Second
	DefaultReconnectDelay = time.Second
)

// warnInterval is the least time between warnings of attempts that fail, for
// why they fail may change.
const warnInterval = time.Minute

// Worker is one worker of one server: a single connection, opened again
// whenever it is lost. Set the fields, then call Run once.
//
// The callbacks run on the worker's own loop, one at a time. They must not
// block and must not call Job.Query; all other methods may be called.
type Worker struct {
	// Address of the server, "host:port" or "host" for port 4730.
	Address string
	// TLS is used on top of TCP unless nil. It is called for each connection,
	// so it may read files anew; see TLSFiles. Without ServerName the host of
	// Address is verified. An error costs the attempt to connect.
	TLS func() (*tls.Config, error)
	// ClientID is shown by the server's `workers` command: at most
	// MaxClientID printable ASCII bytes without blanks, or "" for none.
	ClientID string

	// Assigned gets every job. Each must be finished in the end; until then
	// the server counts it as running.
	Assigned func(*Job)
	// Free reports whether one more job may be grabbed now. It is asked
	// before each PRE_SLEEP and, unless there is Reserve, GRAB_JOB_UNIQ, after
	// Assigned had the job before; nil means always. When it becomes true,
	// call Wake.
	Free func() bool
	// Reserve is for workers that share slots: a GRAB_JOB_UNIQ on its way may
	// bring a job, so nobody else may grab for the same slot meanwhile. It is
	// asked before each GRAB_JOB_UNIQ, and true keeps one slot for the worker,
	// the same one if asked again, until Assigned has a job for it or Release
	// is called. When it becomes true, call Wake. May be nil.
	Reserve func() bool
	// Release says that the worker has no use for a slot now: the grab brought
	// no job, the worker drains, offers no function or lost its connection.
	// It may be called without Reserve before; may be nil.
	Release func()
	// Window is how many GRAB_JOB_UNIQ may be on their way at once while job
	// follows job, 0 for one. With two the server finds the next job while
	// this one is handled. It is for workers whose Free does not depend on
	// what they have, and who have no Reserve.
	Window int
	// NoJob is called for each grab that brought no job; may be nil.
	NoJob func()
	// Connected is called after each connection was made and the functions
	// were registered; may be nil.
	Connected func()
	// Lost is called once for each Connected, after the jobs of the
	// connection ended with ErrHandleLost; may be nil. If Run was asked to
	// end, the reason is its context's.
	Lost func(reason error)
	// ServerError is called for each ERROR packet; may be nil. ERROR names
	// no job: at the code "JOB_NOT_FOUND" one of the handles in use is dead,
	// and Job.Query tells which.
	ServerError func(code, text string)

	// Logger gets connections made and lost, and what servers do wrong. nil
	// means no log.
	Logger *slog.Logger

	// PingInterval is the time between questions that prove the server is
	// there, 0 for DefaultPingInterval. A sleeping worker also tries to grab
	// then, which heals a lost NOOP.
	PingInterval time.Duration
	// PingTimeout is how long the server may be mute after such a question
	// before the connection is given up, 0 for DefaultPingTimeout.
	PingTimeout time.Duration
	// ReconnectDelay is the mean time between attempts to connect, 0 for
	// DefaultReconnectDelay; each is between half and one and a half of it.
	// The first attempt after a loss is made at once. Zuul gives workers 5
	// seconds to come back: do not set much more than a second.
	ReconnectDelay time.Duration
	// MaxPacketSize bounds received packets, in bytes, 0 for
	// DefaultMaxPacketSize. A larger one costs the connection.
	MaxPacketSize int

	initialize  sync.Once
	changed     chan struct{} // holds one token: the loop has news to look for
	reconnect   chan struct{} // holds one token: the connection is to be made anew
	drained     chan struct{}
	closeDrain  sync.Once
	mu          sync.Mutex
	functions   []string
	generation  int // counts SetFunctions
	isDraining  bool
	needsWaking bool
}

func (w *Worker) init() {
	w.initialize.Do(func() {
		w.changed = make(chan struct{}, 1)
		w.reconnect = make(chan struct{}, 1)
		w.drained = make(chan struct{})
	})
}

// signal makes the loop look for news.
func (w *Worker) signal() {
	w.init()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// SetFunctions says which functions to offer, from now on and on every
// connection. It may be called at any time.
//
// Names that ValidFunctionName refuses are left out and reported; the others
// take effect. A function that is no longer offered stays registered while a
// job of it runs on the connection, so a few more jobs of it may come.
func (w *Worker) SetFunctions(names []string) error {
	var valid []string
	var problems []error
	for _, name := range names {
		if err := ValidFunctionName(name); err != nil {
			problems = append(problems, err)
			continue
		}
		valid = append(valid, name)
	}
	w.mu.Lock()
	w.functions = valid
	w.generation++
	w.mu.Unlock()
	w.signal()
	return errors.Join(problems...)
}

// Wake says that Free or Reserve may have become true. It never blocks.
func (w *Worker) Wake() {
	w.mu.Lock()
	w.needsWaking = true
	w.mu.Unlock()
	w.signal()
}

// Drain makes the worker grab nothing any more. It stays connected and
// registered, and its jobs run on. One more job may arrive if it was grabbed
// before; see Drained.
func (w *Worker) Drain() {
	w.mu.Lock()
	w.isDraining = true
	w.mu.Unlock()
	w.signal()
}

func (w *Worker) drains() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.isDraining
}

// Drained is closed once, after Drain, no job runs on the connection and none
// can arrive.
func (w *Worker) Drained() <-chan struct{} {
	w.init()
	return w.drained
}

// Reconnect gives up the connection, if there is one, and makes another. The
// jobs of it end with ErrHandleLost; gearmand gives them to the next worker
// that asks, and geard fails them.
func (w *Worker) Reconnect() {
	w.init()
	select {
	case w.reconnect <- struct{}{}:
	default:
	}
}

// Run works until ctx is done and then returns nil. It returns an error only
// if a field of the worker is wrong.
func (w *Worker) Run(ctx context.Context) error {
	w.init()
	if w.Assigned == nil {
		return errors.New("gearman: Worker.Assigned is nil")
	}
	if w.ClientID != "" {
		if err := validName("client id", w.ClientID, MaxClientID); err != nil {
			return err
		}
	}
	warned := map[bool]time.Time{} // of connections lost (true) and of attempts that failed, since the last good connection
	for ctx.Err() == nil {
		w.closeIfDrained(nil)
		begun := time.Now()
		connected, err := w.runConnection(ctx)
		if ctx.Err() != nil {
			break
		}
		delay := jitter(orDefault(w.ReconnectDelay, DefaultReconnectDelay))
		if time.Since(begun) > delay {
			delay = 0
			if connected {
				clear(warned)
			}
		}
		level := slog.LevelDebug
		if time.Since(warned[connected]) >= warnInterval {
			level, warned[connected] = slog.LevelWarn, time.Now()
		}
		w.logger().Log(ctx, level, "no Gearman connection", "server", w.Address, "error", err, "retryIn", delay)
		w.pause(ctx, delay)
	}
	w.closeIfDrained(nil)
	return nil //nolint:nilerr // a lost connection is no failure: it is made again until ctx is done
}

// pause waits, but sees Drain meanwhile.
func (w *Worker) pause(ctx context.Context, delay time.Duration) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-w.changed:
			w.closeIfDrained(nil)
		}
	}
}

// closeIfDrained closes Drained if the worker is draining and s, the session
// of its connection if it has one, is quiet.
func (w *Worker) closeIfDrained(s *session) {
	if w.drains() && (s == nil || s.quiet()) {
		w.closeDrain.Do(func() { close(w.drained) })
	}
}

func (w *Worker) logger() *slog.Logger {
	if w.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return w.Logger
}

func orDefault(value, standard time.Duration) time.Duration {
	if value <= 0 {
		return standard
	}
	return value
}

// jitter spreads a duration over one half to one and a half of it.
func jitter(mean time.Duration) time.Duration {
	return mean/2 + rand.N(mean)
}

// errReconnect is the reason of a connection given up because of Reconnect.
var errReconnect = errors.New("gearman: another connection is wanted")

// errMute is the reason of a connection given up for its silence.
func (w *Worker) errMute() error {
	return fmt.Errorf("gearman: %s gave no answer within %v", w.Address, orDefault(w.PingTimeout, DefaultPingTimeout))
}
