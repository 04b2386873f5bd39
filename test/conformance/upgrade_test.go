//go:build linux

package conformance

import (
	"bytes"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/hack/programs"
)

// upgradeVariable has rolling-upgrade run with so many builds that run through the whole of it, and with its time limit. It is `make upgrade`: built
// with the race detector, three replicas and a kubelet are more than two cores carry beside other tests with more than a few.
const upgradeVariable = "ZUULBUILD_UPGRADE"

// leads is what a replica logs when it is elected.
const leads = "This replica leads"

// awaitLeader waits until one of the replicas leads.
func (s *scene) awaitLeader(replicas []*programs.Program) (leader *programs.Program) {
	s.Helper()
	s.eventually("a replica that leads", func() bool {
		for _, replica := range replicas {
			said, err := os.ReadFile(replica.LogFile)
			s.must(err)
			if bytes.Contains(said, []byte(leads)) {
				leader = replica
			}
		}
		return leader != nil
	})
	return leader
}

// rollingUpgrade: replicas are replaced, the leader each time, while builds run and more arrive. Nothing is lost or run twice, and at no moment does
// the server show one of our functions without a worker: Zuul would call the job NOT_REGISTERED, which is final.
func rollingUpgrade(s *scene) {
	const times, look = 3, 20 * time.Millisecond
	lasting := scale(s.T, upgradeVariable, 5)
	arriving := min(2*time.Second, 20*time.Second/time.Duration(lasting)) // 10 a second beside 200
	s.terminate()                                                         // it was started alone
	start := func(more ...string) *programs.Program {
		return s.startOperator(s.T, append([]string{"--leader-elect", "--leader-namespace", s.namespace, "--max-builds", strconv.Itoa(lasting + 100)}, more...)...)
	}
	replicas := []*programs.Program{start()}
	leader := s.awaitLeader(replicas)
	history := newPodHistory(s.T, s.kubelet.pods, s.namespace)
	job := s.job(holds)
	functions := []string{"build:" + job, "stop:" + manager, "set_description:" + manager}
	registered := func(workers int) func() bool {
		return func() bool {
			now := s.functions()
			return !slices.ContainsFunc(functions, func(f string) bool { return now[f].Workers < workers })
		}
	}
	replicas = append(replicas, start())
	s.eventually("the functions of both replicas", registered(2))

	var builds []*zuulclient.Build
	for range lasting {
		builds = append(builds, s.submit(zuulclient.Request{Job: job}))
	}
	for _, build := range builds {
		s.running(build)
	}
	stopLooking := gearmantest.WatchWorkers(s, s.servers[0].address, look, functions...)
	var beside sync.WaitGroup
	var arrivals atomic.Bool
	defer beside.Wait()
	defer arrivals.Store(false)
	arrivals.Store(true)
	var arrived []*zuulclient.Build
	beside.Go(func() {
		for arrivals.Load() {
			unique := zuulclient.NewUUID()
			s.kubelet.playsPod(s.namespace, unique, runsFor(rand.N(3*time.Second), 0))
			build, err := s.zuul.Submit(s.Context(), zuulclient.Request{Job: job, UUID: unique, Unchecked: true})
			if err != nil {
				s.Error(err)
				return
			}
			arrived = append(arrived, build)
			time.Sleep(arriving)
		}
	})
	var handovers []time.Duration
	for replaced := range times {
		replicas = append(replicas, start())
		s.eventually("the functions of the new replica", registered(3))
		old, begun := leader, time.Now()
		s.must(old.Signal(syscall.SIGTERM))
		replicas = slices.DeleteFunc(replicas, func(p *programs.Program) bool { return p == old })
		leader = s.awaitLeader(replicas)
		handovers = append(handovers, time.Since(begun))
		if replaced == 0 { // the first leader leads no more, and still has builds to report
			for _, build := range builds[:lasting/2] {
				s.exit(build.State().UUID, 0)
				s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
			}
			if took := s.cancel(builds[lasting/2]); took > atOnce {
				s.Errorf("stop: was answered after %v", took)
			}
			s.expect(s.end(builds[lasting/2]), zuulclient.Canceled, "ABORTED")
			for _, build := range builds[lasting/2+1:] {
				s.exit(build.State().UUID, 1)
				s.expect(s.end(build), zuulclient.Decided, "FAILURE")
			}
		}
		s.ended(old)
	}
	arrivals.Store(false)
	beside.Wait()
	for _, build := range arrived {
		s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
	}
	killed, dead := s.killLeader(replicas, job)
	looks := stopLooking()
	made := history.counts()
	for _, build := range append(builds, arrived...) {
		if unique := build.State().UUID; made[unique] != 1 {
			s.Errorf("%s had %d Pods", unique, made[unique])
		}
	}
	s.Logf("%d builds arrived; another replica led after %v, and after the leader was killed the next report came after %v; %d looks, at most %v apart",
		len(arrived), handovers, killed, looks.Count, looks.Longest)
	if os.Getenv(upgradeVariable) == "" {
		return
	}
	for _, replica := range replicas {
		if replica != dead {
			s.must(replica.Signal(syscall.SIGTERM))
			s.ended(replica)
		}
	}
	usual := s.killWithUsualLease(job, func() *programs.Program { return start("--leader-lease", usualLease.String()) })
	ratio := killed.Seconds() / usual.Seconds()
	s.Logf("the same with the default lease of client-go, %v: %v; ours takes %.2f of it", usualLease, usual, ratio)
	if ratio > 0.3 {
		s.Errorf("after the leader was killed the next report came after %.2f of the time it takes with the default lease, more than 0.3", ratio)
	}
}

// usualLease is the default of client-go, and so of most operators.
const usualLease = 15 * time.Second

// killWithUsualLease is killLeader with other replicas.
func (s *scene) killWithUsualLease(job string, start func() *programs.Program) time.Duration {
	s.Helper()
	replicas := []*programs.Program{start(), start()}
	s.awaitLeader(replicas)
	s.eventually("the functions of both replicas", func() bool { return s.functions()["build:"+job].Workers >= len(replicas) })
	took, _ := s.killLeader(replicas, job)
	return took
}

// ended waits for the end of a replica.
func (s *scene) ended(replica *programs.Program) {
	s.Helper()
	select {
	case <-replica.Ended():
	case <-time.After(patience):
		s.Fatal("a replica does not end when its builds have")
	}
}

// took is the replica that took a build.
func (s *scene) took(replicas []*programs.Program, unique string) *programs.Program {
	s.Helper()
	taken := regexp.MustCompile(`"Build taken",.*` + unique)
	for _, replica := range replicas {
		said, err := os.ReadFile(replica.LogFile)
		s.must(err)
		if taken.Match(said) {
			return replica
		}
	}
	s.Fatalf("no replica took build %s", unique)
	return nil
}

// killLeader ends the leader as a crash does, while a build runs, and returns how long it took until Zuul heard of a new build.
func (s *scene) killLeader(replicas []*programs.Program, job string) (took time.Duration, leader *programs.Program) {
	s.Helper()
	running := s.submit(zuulclient.Request{Job: job})
	state, pod := s.running(running)
	leader = s.took(replicas, state.UUID) // the lead may have moved, where the API server was slow
	begun := time.Now()
	leader.Kill()
	next := s.submit(zuulclient.Request{Job: job})
	s.started(next)
	took = time.Since(begun)
	if s.flavour.geard {
		s.expect(s.end(running), zuulclient.Retry, "")
	} else {
		if now := s.podOf(state.UUID); now.UID != pod.UID {
			s.Errorf("%s has another Pod", state.UUID)
		}
		s.exit(state.UUID, 0)
		s.expect(s.end(running), zuulclient.Decided, "SUCCESS")
	}
	s.exit(next.State().UUID, 1)
	s.expect(s.end(next), zuulclient.Decided, "FAILURE")
	return took, leader
}
