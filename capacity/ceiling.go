package capacity

import "sync/atomic"

// Ceiling is how many builds there may be at once in all: --max-builds, 1 or more. It may be changed at any time; one that is lowered ends no build, and
// lets none begin until there is room again.
type Ceiling struct {
	builds  atomic.Int64
	changed listeners
}

// NewCeiling is one of so many builds.
func NewCeiling(builds int) *Ceiling {
	c := &Ceiling{}
	c.builds.Store(int64(builds))
	return c
}

// Builds is how many there may be.
func (c *Ceiling) Builds() int { return int(c.builds.Load()) }

// Set how many there may be, and tell of it.
func (c *Ceiling) Set(builds int) {
	if c.builds.Swap(int64(builds)) != int64(builds) {
		c.changed.call()
	}
}

// OnChange has f called whenever it has become another, until stop is called. It must not take long.
func (c *Ceiling) OnChange(f func()) (stop func()) { return c.changed.add(f) }
