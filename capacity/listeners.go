package capacity

import (
	"slices"
	"sync"
)

// listeners are called when something has happened. The zero value has none.
type listeners struct {
	mu  sync.Mutex
	all []*func()
}

// add has f called, until stop is.
func (l *listeners) add(f func()) (stop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, &f)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all = slices.DeleteFunc(slices.Clone(l.all), func(other *func()) bool { return other == &f })
	}
}

// call them all, those that are there now. No lock is held meanwhile.
func (l *listeners) call() {
	l.mu.Lock()
	all := slices.Clip(l.all)
	l.mu.Unlock()
	for _, f := range all {
		(*f)()
	}
}
