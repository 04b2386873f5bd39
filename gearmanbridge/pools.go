package gearmanbridge

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// pool is one building connection to one Gearman server. It offers functions that count for the same limits, so a limit that is reached holds up
// nothing that is not under it. What the limits are is looked up before each grab.
type pool struct {
	scope   capacity.Scope
	worker  *gearman.Worker
	retired chan struct{} // closed when another takes its place

	connected atomic.Bool
}

// pools are the building connections to one Gearman server.
//
// A function whose limits change goes to another pool. gearmand would requeue its running jobs if the old connection unregistered it (protocol
// section 0, finding 6), and a connection that kept it would grab past the new limit or be held up by it. So that connection retires: it drains, which
// leaves its jobs and its functions as they are, and closes after the last of them, but never before those that offer its functions now: to Zuul a
// function without a worker is NOT_REGISTERED, which is final.
type pools struct {
	create func(capacity.Scope) *pool

	mu       sync.Mutex
	run      func(*pool)               // runs a pool in the background; nil while none shall run
	planned  map[string]capacity.Scope // of each function
	active   map[capacity.Scope]*pool
	running  map[*pool]bool // the active and the retired ones that run
	draining bool
}

// set has the functions offered, each in the pool of its scope.
func (p *pools) set(planned map[string]capacity.Scope) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.draining { // nothing is grabbed, so nothing need be parted
		for scope := range outdated(p.planned, planned) {
			close(p.active[scope].retired)
			p.active[scope].worker.Drain()
			delete(p.active, scope)
		}
	}
	p.planned = planned
	functions := byScope(planned)
	for scope := range functions {
		if p.active[scope] == nil {
			p.add(scope)
		}
	}
	var problems []error
	for scope, active := range p.active {
		problems = append(problems, active.worker.SetFunctions(functions[scope]))
	}
	return errors.Join(problems...)
}

// add makes the pool of a scope. p.mu is held.
func (p *pools) add(s capacity.Scope) {
	added := p.create(s)
	if p.active == nil {
		p.active, p.running = map[capacity.Scope]*pool{}, map[*pool]bool{}
	}
	p.active[s] = added
	if p.draining {
		added.worker.Drain() // it only says that its functions exist
	}
	if p.run != nil {
		p.running[added] = true
		p.run(added)
	}
}

// byScope are the functions of each pool, in any order.
func byScope(planned map[string]capacity.Scope) map[capacity.Scope][]string {
	functions := map[capacity.Scope][]string{}
	for function, s := range planned {
		functions[s] = append(functions[s], function)
	}
	return functions
}

// outdated are the scopes whose pool retires: those that lose a function to another scope, or all they had.
func outdated(before, after map[string]capacity.Scope) map[capacity.Scope]bool {
	outdated, kept := map[capacity.Scope]bool{}, byScope(after)
	for function, s := range before {
		if now, stays := after[function]; stays && now != s || kept[s] == nil {
			outdated[s] = true
		}
	}
	return outdated
}

// start has the pools run, those there are and those to come, until stop.
func (p *pools) start(run func(*pool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.run = run
	for _, active := range p.active {
		p.running[active] = true
		run(active)
	}
}

// stop has no pool run that does not run already.
func (p *pools) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.run = nil
}

// work runs a pool until ctx is done, or it has retired and its jobs have ended. It returns an error only if the pool cannot run at all.
func (p *pools) work(ctx context.Context, working *pool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		defer cancel()
		for _, event := range []<-chan struct{}{working.retired, working.worker.Drained()} {
			select {
			case <-event:
			case <-ctx.Done():
				return
			}
		}
		p.awaitSuccessors(ctx, working)
	}()
	err := working.worker.Run(ctx)
	cancel()
	<-closed
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.running, working)
	return err
}

const (
	// overlap is how long a retired pool and its successors offer its functions together. The server reads what a connection wrote when it comes to it,
	// and does not tell.
	overlap = 2 * time.Second
	// overlapCheck is how often the successors are looked at meanwhile.
	overlapCheck = 100 * time.Millisecond
)

// awaitSuccessors returns when the active pools have been connected for the overlap, or a retired one has itself no connection to keep.
func (p *pools) awaitSuccessors(ctx context.Context, retired *pool) {
	ticker := time.NewTicker(overlapCheck)
	defer ticker.Stop()
	for left := overlap; left > 0 && retired.connected.Load(); {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if left -= overlapCheck; !p.allConnected() {
			left = overlap
		}
	}
}

func (p *pools) allConnected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, active := range p.active {
		if !active.connected.Load() {
			return false
		}
	}
	return true
}

// connected tells whether there are pools, each with its connection.
func (p *pools) connected() bool {
	p.mu.Lock()
	planned := p.planned != nil
	p.mu.Unlock()
	return planned && p.allConnected()
}

// drain has no pool grab any more, and returns those whose jobs run on.
func (p *pools) drain() []*gearman.Worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draining = true
	for _, active := range p.active {
		active.worker.Drain()
	}
	workers := make([]*gearman.Worker, 0, len(p.running))
	for running := range p.running {
		workers = append(workers, running.worker)
	}
	return workers
}

// reconnect has every pool, the retired ones too, give up its connection with the jobs of it, and make another.
func (p *pools) reconnect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for running := range p.running {
		running.worker.Reconnect()
	}
}

// planPools decides which function goes to which pool.
func planPools(functions map[string]target, l *capacity.Limits) map[string]capacity.Scope {
	planned := make(map[string]capacity.Scope, len(functions))
	for name, t := range functions {
		planned[name] = l.Scope(t.key, t.class)
	}
	return planned
}
