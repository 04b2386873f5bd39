//go:build linux

package conformance

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

const (
	// soakVariable is how many uniques TestSoak goes through, and seedVariable has it go through those of an earlier run. The machine still decides
	// what meets what, so a seed makes the same faults likely rather than certain.
	soakVariable, seedVariable = "ZUULBUILD_SOAK", "ZUULBUILD_SEED"
	// soakUniques is the number where the environment gives none, and soakGrace the grace period.
	soakUniques = 300
	soakGrace   = 10 * time.Second
	// auditInterval is the time between two looks at the wire.
	auditInterval = 100 * time.Millisecond
)

// mishap is what befalls a soak; while it lasts nothing else does.
type mishap struct {
	name   string
	weight int
	befall func(*soak)
}

// mishaps and how many there are of each among all. A silent network is cut in the end, because no TCP goes on without the bytes it has lost.
var mishaps = []mishap{
	{"connections cut", 6, func(s *soak) { s.proxy().Cut() }},
	{"networks silent", 3, func(s *soak) {
		s.proxy().HalfOpen(true)
		s.pause(200*time.Millisecond, 2*time.Second)
		s.proxy().Cut()
		s.proxy().HalfOpen(false)
	}},
	{"networks refusing", 2, func(s *soak) {
		s.proxy().Refuse(true)
		s.proxy().Cut()
		s.pause(200*time.Millisecond, 2*time.Second)
		s.proxy().Refuse(false)
	}},
	{"gearmand killed", 1, func(s *soak) {
		s.servers[0].end()
		s.pause(0, time.Second)
		s.servers[0].start()
	}},
	{"operator killed", 2, func(s *soak) {
		s.kill()
		s.pause(0, time.Second)
		s.restartOperator()
	}},
}

// play is what the Pod of a unique does.
type play struct {
	duration time.Duration
	code     int32 // or evicted
}

// result is what Zuul must be told, "" for a build to be run again.
func (p play) result() string {
	switch p.code {
	case evicted:
		return ""
	case 0:
		return "SUCCESS"
	default:
		return "FAILURE"
	}
}

// soak is a Zuul with many builds and a world that fails it.
type soak struct {
	*scene
	ctx     context.Context
	seed    uint64
	job     string
	history *podHistory
	mishaps *rand.Rand

	dialing sync.Mutex // not mu: while the server is away the mishaps go on counting
	current *zuulclient.Client

	mu     sync.Mutex
	plays  map[string]play // by unique
	counts map[string]int
	// given is how often each unique was given to the operator.
	given map[string]int
}

// TestSoak: whatever breaks between Zuul and the Pods, each unique has one Pod at a time, handles stay on their connections and end once, and Zuul is
// told what the Pod's end asks for.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	gearmantest.NeedGearmand(t)
	uniques := scale(t, soakVariable, soakUniques)
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		must(t, err)
	}
	t.Logf("%s=%d %s=%d", soakVariable, uniques, seedVariable, seed)

	suite := newSuite(t)
	sideBySide, interval, longest := 40, 2500*time.Millisecond, time.Second
	if uniques > 1000 {
		sideBySide, interval, longest = 150, 6*time.Second, 5*time.Second
	}
	w := suite.newWorld(t, gearmand, 1, "--max-builds", strconv.Itoa(sideBySide*3/4), "--grace-period", soakGrace.String())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(uniques)*time.Second)
	defer cancel()
	s := &soak{
		scene: newScene(t, "soak", w), ctx: ctx, seed: seed, mishaps: rand.New(rand.NewPCG(seed, 0)),
		history: newPodHistory(t, suite.kubelet.pods, w.namespace),
		plays:   map[string]play{}, counts: map[string]int{}, given: map[string]int{},
	}
	s.current = s.zuul
	s.job = s.scene.job(holds)

	begun := time.Now()
	var changes sync.WaitGroup
	var next atomic.Int64
	for range sideBySide {
		changes.Go(func() {
			for change := next.Add(1); s.uniques() < uniques && ctx.Err() == nil && !t.Failed(); change = next.Add(1) {
				s.change(change, longest)
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		changes.Wait()
	}()
	s.befall(done, interval)
	took := time.Since(begun)
	if ctx.Err() != nil {
		t.Errorf("only %d uniques in %v", s.uniques(), took)
	}
	s.settled()
	s.report(took)
}

// uniques are how many there were.
func (s *soak) uniques() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.plays)
}

func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// change has Zuul run the job for a change until there is a result.
func (s *soak) change(change int64, longest time.Duration) {
	random := rand.New(rand.NewPCG(s.seed, uint64(change)))
	for attempt := 1; s.ctx.Err() == nil; attempt++ {
		p := play{}
		p.duration = time.Duration(random.Int64N(int64(longest)))
		switch choice := random.IntN(20); {
		case choice == 0 && attempt == 1: // not twice, lest the operator hold the next attempt back
			p.code = evicted
		case choice < 6:
			p.code = 1 + random.Int32N(125)
		}
		unique := uniqueOf(random)
		s.mu.Lock()
		s.plays[unique] = p
		s.mu.Unlock()
		s.kubelet.playsPod(s.namespace, unique, runsFor(p.duration, p.code))
		zuul := s.connected()
		if zuul == nil {
			return
		}
		parameters := map[string]any{"ZUUL_CHANGE": strconv.FormatInt(change, 10), "ZUUL_PATCHSET": "1"}
		build, err := zuul.Submit(s.ctx, zuulclient.Request{Job: s.job, UUID: unique, Parameters: parameters, Unchecked: true})
		if err != nil {
			s.count("lost with the server")
			continue
		}
		state, err := build.Wait(s.ctx)
		if s.told(state, p, err) {
			return
		}
	}
}

// uniqueOf is a unique as Zuul makes them.
func uniqueOf(random *rand.Rand) string {
	var bytes [16]byte
	for i := range bytes {
		bytes[i] = byte(random.Uint32())
	}
	return hex.EncodeToString(bytes[:])
}

// connected is a connection of Zuul to the server, a new one if the last was lost; nil at the end of the test.
func (s *soak) connected() *zuulclient.Client {
	s.dialing.Lock()
	defer s.dialing.Unlock()
	for {
		select {
		case <-s.current.Gearman.Done():
		default:
			return s.current
		}
		zuul, err := zuulclient.Dial(s.ctx, s.servers[0].address, nil, zuulclient.Zuul2)
		if err == nil {
			s.current = zuul
			s.Cleanup(func() { _ = zuul.Close() })
			return zuul
		}
		select {
		case <-s.ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// told looks at what Zuul made of a build, and tells whether it is content with it.
func (s *soak) told(state zuulclient.State, p play, err error) bool {
	serverLost := errors.Is(err, gearman.ErrConnectionLost)
	if err != nil && !serverLost {
		s.Errorf("%s did not end: %v; packets %v", state.UUID, err, kinds(state))
		return true
	}
	for _, violation := range state.Violations {
		s.Errorf("%s: packet %d breaks rule %s: %s", state.UUID, violation.Packet, violation.Rule, violation.Text)
	}
	switch {
	case state.Outcome == zuulclient.Decided:
		s.count("result " + state.Result)
		if build := s.stored(state.UUID); build == nil || !build.Complete() || build.Status.Result != state.Result || state.Result != p.result() {
			s.Errorf("%s: Zuul was told %q, the Pod asks for %q, and stored is %v", state.UUID, state.Result, p.result(), statusOf(build))
		}
		if state.Starts != 1 {
			s.Errorf("%s: Zuul was told of %d starts", state.UUID, state.Starts)
		}
		return true
	case state.Outcome == zuulclient.Retry && serverLost:
		s.count("lost with the server")
	case state.Outcome == zuulclient.Retry:
		build := s.stored(state.UUID)
		if build == nil || build.Status.Phase != v1alpha1.PhaseLost || build.Status.Result != "" {
			s.Errorf("%s: Zuul was told to run it again, and stored is %v", state.UUID, statusOf(build))
			return false
		}
		s.count("run again: " + build.Status.Reason)
		if p.code != evicted && build.Status.Reason != "Abandoned" {
			s.Errorf("%s: Zuul was told to run it again: %v", state.UUID, statusOf(build))
		}
	default:
		s.Errorf("%s: Zuul made of it %q with result %q", state.UUID, state.Outcome, state.Result)
	}
	return false
}

// stored is the ZuulBuild of a unique, or nil. It may be called beside the test.
func (s *soak) stored(unique string) *v1alpha1.ZuulBuild {
	build := &v1alpha1.ZuulBuild{}
	if err := s.api.Get(s.ctx, client.ObjectKey{Namespace: s.namespace, Name: unique}, build); err != nil {
		s.Errorf("%s: %v", unique, err)
		return nil
	}
	return build
}

func statusOf(build *v1alpha1.ZuulBuild) string {
	if build == nil {
		return "nothing"
	}
	return fmt.Sprintf("phase %s, result %q, reason %s (%s)", build.Status.Phase, build.Status.Result, build.Status.Reason, build.Status.Message)
}

// befall has mishaps happen, an interval apart on average, and looks at the wire, until done.
func (s *soak) befall(done <-chan struct{}, interval time.Duration) {
	deck := s.shuffled(func(mishap) int { return 1 }) // one of each first
	due := time.Now().Add(interval)
	for {
		select {
		case <-done:
			s.audit()
			return
		case <-time.After(auditInterval):
			s.audit()
		}
		if time.Now().Before(due) {
			continue
		}
		if len(deck) == 0 {
			deck = s.shuffled(func(m mishap) int { return m.weight })
		}
		s.count(deck[0].name)
		deck[0].befall(s)
		deck = deck[1:]
		due = time.Now().Add(time.Duration(s.mishaps.Int64N(int64(2 * interval))))
	}
}

// shuffled are mishaps, so many of each, in the order of chance.
func (s *soak) shuffled(number func(mishap) int) []mishap {
	var deck []mishap
	for _, m := range mishaps {
		deck = append(deck, slices.Repeat([]mishap{m}, number(m))...)
	}
	s.mishaps.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
	return deck
}

// pause is as long as chance has it.
func (s *soak) pause(least, most time.Duration) {
	for end := time.Now().Add(least + time.Duration(s.mishaps.Int64N(int64(most-least)))); time.Now().Before(end); time.Sleep(auditInterval / 4) {
		s.audit()
	}
}

// audit inspects the wire, and counts which uniques came again: a build that ran or one that had ended.
func (s *soak) audit() {
	for _, packet := range s.world.audit(s.T, 0) {
		if packet.kind != gearman.PacketJobAssignUniq {
			continue
		}
		job := packet.assigned()
		if !strings.HasPrefix(job.function, "build:") {
			continue
		}
		s.mu.Lock()
		s.given[job.unique]++
		again := s.given[job.unique] > 1
		s.mu.Unlock()
		if again && s.history.exits(job.unique) {
			s.count("replayed")
		} else if again {
			s.count("adopted")
		}
	}
}

// settled looks at what is left when every change has its result.
func (s *soak) settled() {
	if s.Failed() {
		return
	}
	var unfinished []string
	gearmantest.Eventually(s, soakGrace+patience, "every build complete", func() bool {
		unfinished = nil
		builds := v1alpha1.ZuulBuildList{}
		s.must(s.api.List(s.ctx, &builds, client.InNamespace(s.namespace)))
		for i := range builds.Items {
			if build := &builds.Items[i]; !build.Complete() {
				unfinished = append(unfinished, build.Name+": "+statusOf(build))
			}
		}
		return len(unfinished) == 0
	})
	gearmantest.Eventually(s, patience, "no Pod that runs", func() bool { return s.history.running() == 0 })
	s.eventually("no job in the server", func() bool {
		function := s.functions()["build:"+s.job]
		return function.Queued == 0 && function.Running == 0
	})
	s.audit()
	for _, job := range s.inspectors[0].jobs {
		if s.proxy().Connected(job.connection) {
			s.Errorf("job %s of %s was never finished, and its connection is still there", job.handle, job.unique)
		}
	}
	builds := v1alpha1.ZuulBuildList{}
	s.must(s.api.List(s.ctx, &builds, client.InNamespace(s.namespace)))
	for i := range builds.Items {
		build := &builds.Items[i]
		p, ours := s.plays[build.Name]
		verdict := build.Status.Phase == v1alpha1.PhaseSucceeded || build.Status.Phase == v1alpha1.PhaseFailed
		if !ours || verdict != (build.Status.Result != "") || verdict && build.Status.Result != p.result() {
			s.Errorf("%s: stored is %v, the Pod asks for %q", build.Name, statusOf(build), p.result())
		}
	}
}

func (s *soak) report(took time.Duration) {
	pods := 0
	for _, made := range s.history.counts() {
		pods += made
	}
	rows := [][]any{
		{"seed", s.seed}, {"took", took.Round(time.Second)}, {"uniques", len(s.plays)}, {"Pods", pods}, {"connections made", s.proxy().Accepted()},
	}
	for _, m := range mishaps {
		rows = append(rows, []any{m.name, s.counts[m.name]})
		delete(s.counts, m.name)
	}
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		rows = append(rows, []any{what, s.counts[what]})
	}
	report(s.T, rows)
}
