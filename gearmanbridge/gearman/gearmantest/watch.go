package gearmantest

import (
	"context"
	"sync"
	"testing"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// Looks are what WatchWorkers saw.
type Looks struct {
	// Count is how many looks there were.
	Count int
	// Without counts functions shown without a worker, each in each look.
	Without int
	// Longest is the longest time from one look to the next.
	Longest time.Duration
}

// WatchWorkers looks at the `status` of the server at the address now, and
// then every interval until stop is called or the test ends. To Zuul a
// function without a worker is NOT_REGISTERED, which is final: the test fails
// for each of the functions that becomes one. A function the server does not
// list has no worker.
func WatchWorkers(t testing.TB, address string, interval time.Duration, functions ...string) (stop func() Looks) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	admin, err := gearman.DialAdmin(ctx, address, nil)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	w := &workerWatch{t: t, admin: admin, functions: functions, absent: map[string]bool{}, last: time.Now()}
	watching := w.look(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer func() { _ = admin.Close() }()
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for watching {
			select {
			case <-ticker.C:
				watching = w.look(ctx)
			case <-ctx.Done():
				return
			}
		}
	}()
	stop = sync.OnceValue(func() Looks {
		cancel()
		<-ended
		return w.looks
	})
	t.Cleanup(func() { stop() })
	return stop
}

type workerWatch struct {
	t         testing.TB
	admin     *gearman.Admin
	functions []string
	looks     Looks
	last      time.Time       // look
	absent    map[string]bool // functions that had no worker then
}

// look returns whether the server can be asked again.
func (w *workerWatch) look(ctx context.Context) bool {
	lines, err := w.admin.Status(ctx)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		w.t.Errorf("look %d at the functions of the server: %v", w.looks.Count, err)
		return false
	}
	now := time.Now()
	w.looks.Count, w.looks.Longest, w.last = w.looks.Count+1, max(w.looks.Longest, now.Sub(w.last)), now
	workers := map[string]int{}
	for _, line := range lines {
		workers[line.Name] = line.Workers
	}
	for _, function := range w.functions {
		absent := workers[function] == 0
		if absent {
			w.looks.Without++
		}
		if absent && !w.absent[function] {
			w.t.Errorf("look %d shows %s without a worker", w.looks.Count, function)
		}
		w.absent[function] = absent
	}
	return true
}
