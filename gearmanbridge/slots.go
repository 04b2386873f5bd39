package gearmanbridge

import (
	"slices"
	"sync"
	"sync/atomic"

	"zuulbuild.dev/zuulbuild/capacity"
)

// slots decides which pool may grab. The builds there are, are counted anew each time; what is kept is only which pool has a grab on its way, which
// may bring one build more, and which ones wait for their turn. Both end with the answer to the grab, or with the pool's connection: a server that
// turns mute holds a slot until it is given up.
//
// Pools that compete for one slot take turns, since nothing tells which of their jobs has the higher precedence before it is grabbed.
type slots struct {
	// count the builds that have a slot, and those on their way to one. A build that is no longer counted must be followed by a call of wake.
	count func(*capacity.Limits) *capacity.Usage

	waking atomic.Bool // somebody is about to look for room

	mu       sync.Mutex
	closed   bool // no slot is given at all
	limits   capacity.Limits
	reserved map[*pool]bool
	waiting  []*pool // the longest first
}

// reserve is gearman.Worker.Reserve: the pool comes after those that wait already.
func (s *slots) reserve(p *pool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserved[p] {
		return true
	}
	s.await(p)
	s.dispatch(p)
	return s.reserved[p]
}

// free is gearman.Worker.Free: whether the pool may sleep. Grabs on their way do not matter: a pool that stays awake until they are answered, and
// keeps others awake with its own, would go on for ever.
func (s *slots) free(p *pool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.limits.Room(s.count(&s.limits), p.scope) {
		s.await(p)
		return false
	}
	return true
}

// release is gearman.Worker.Release: the pool has no use for a slot now.
func (s *slots) release(p *pool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = slices.DeleteFunc(s.waiting, func(other *pool) bool { return other == p })
	if s.reserved[p] {
		delete(s.reserved, p)
		s.dispatch(nil)
	}
}

// assigned has add note what the grab of the pool brought. From then on it is counted in the place of the grab.
func (s *slots) assigned(p *pool, add func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	add()
	delete(s.reserved, p)
}

// setLimits replaces the limits.
func (s *slots) setLimits(l capacity.Limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits = l
	s.dispatch(nil)
}

// open has slots given or not.
func (s *slots) open(open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = !open
	s.dispatch(nil)
}

// wake says that there may be room now. Of many who say so at once one looks.
func (s *slots) wake() {
	if s.waking.Swap(true) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waking.Store(false)
	s.dispatch(nil)
}

// await puts a pool at the end of those that wait. s.mu is held.
func (s *slots) await(p *pool) {
	if !slices.Contains(s.waiting, p) {
		s.waiting = append(s.waiting, p)
	}
}

// dispatch gives slots to the pools that wait, in their order, and wakes them, but for the one that is asking. A pool whose own limit is reached
// keeps its place and holds up no other. s.mu is held.
func (s *slots) dispatch(asking *pool) {
	if s.closed || len(s.waiting) == 0 {
		return
	}
	used := s.count(&s.limits)
	if s.reserved == nil {
		s.reserved = map[*pool]bool{}
	}
	for p := range s.reserved {
		used.Add(p.scope)
	}
	s.waiting = slices.DeleteFunc(s.waiting, func(p *pool) bool {
		if !s.limits.Room(used, p.scope) {
			return false
		}
		used.Add(p.scope)
		s.reserved[p] = true
		if p != asking {
			p.worker.Wake()
		}
		return true
	})
}

// usage counts the builds that have a slot, and the assignments whose build is still on its way. s.mu is held, so no assignment is added meanwhile.
func (b *Bridge) usage(l *capacity.Limits) *capacity.Usage {
	used := b.Builds.Claimed(l)
	b.assignments.unseen(b.Builds.Knows, func(of target) { used.Add(l.Scope(of.key, of.class)) })
	return used
}
