//go:build linux

package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// flowCases are those under "Flow control", and some of what else the contract asks for.
func flowCases() []testCase {
	return []testCase{
		{name: "3000-functions", on: bothKinds, own: true, test: manyFunctions},
		{name: "cap", on: []*flavour{gearmand, roundRobin, oneWakeup, geard}, own: true, flags: []string{"--max-builds", "3"}, test: capacity},
		{name: "full-silent", on: []*flavour{gearmand, oneWakeup, geard}, own: true, flags: []string{"--max-builds", "1"}, test: fullIsSilent},
		{name: "starvation", on: []*flavour{gearmand, roundRobin, geard}, own: true, flags: []string{"--max-builds", "1"}, test: starvation},
		{name: "class-limit", on: bothKinds, own: true, needs: nodeClassLimits, test: classLimit},
		{name: "reload", on: []*flavour{gearmand}, own: true, test: reload},
		{name: "tls", on: []*flavour{geard}, own: true, needs: tlsToServers, test: tlsServers},
	}
}

// firstToRun is the index of the build that ran next, of those not yet done.
func (s *scene) firstToRun(builds []*zuulclient.Build, done map[int]bool) int {
	s.Helper()
	next := -1
	s.eventually("the next build", func() bool {
		for i, build := range builds {
			if !done[i] && len(build.State().Packets) >= 4 {
				next = i
				return true
			}
		}
		return false
	})
	return next
}

// capacity: never more Pods than there may be, and the server's order of those that wait: by priority, then first come first served. gearmand orders
// by priority within a function only, geard across all.
func capacity(s *scene) {
	const slots = 3
	jobs := []string{s.job(holds)}
	if s.flavour.geard {
		jobs = append(jobs, s.job(holds), s.job(holds))
	}
	var builds []*zuulclient.Build
	add := func(count int, precedence gearman.Priority) {
		for range count {
			builds = append(builds, s.submit(zuulclient.Request{Job: jobs[len(builds)%len(jobs)], Precedence: precedence}))
		}
	}
	add(slots, gearman.PriorityNormal)
	for _, build := range builds {
		s.running(build)
	}
	add(2, gearman.PriorityLow)
	add(3, gearman.PriorityNormal)
	add(2, gearman.PriorityHigh)
	want := []int{8, 9, 5, 6, 7, 3, 4}
	var order []int
	done := map[int]bool{0: true, 1: true, 2: true}
	for i := range builds {
		// The one that has run longest makes room for the next, until none waits.
		runs := i
		if i >= slots {
			runs = order[i-slots]
		}
		s.exit(builds[runs].State().UUID, 0)
		s.expect(s.end(builds[runs]), zuulclient.Decided, "SUCCESS")
		if len(order) < len(want) {
			next := s.firstToRun(builds, done)
			done[next] = true
			order = append(order, next)
		}
	}
	if !slices.Equal(order, want) {
		s.Errorf("builds ran in the order %v, want %v", order, want)
	}
	if most := s.kubelet.mostAtOnce(s.namespace); most != slots {
		s.Errorf("%d Pods at once", most)
	}
}

// asks are the times at which the operator asked for builds, or for being woken for them, from chunk number `from` of the recording on.
func (s *scene) asks(connection, from int) []gearman.PacketType {
	s.Helper()
	var asks []gearman.PacketType
	for _, packet := range wirePackets(s.proxy().Recording()[from:]) {
		wants := packet.kind == gearman.PacketGrabJobUniq || packet.kind == gearman.PacketGrabJob || packet.kind == gearman.PacketPreSleep
		if packet.connection == connection && packet.direction == gearmantest.ToServer && wants {
			asks = append(asks, packet.kind)
		}
	}
	return asks
}

// offering are the connections that ever offered a function. There may be several: tests beside this one limit node classes, which all worlds see, and
// what else was on a connection goes to a new one then.
func (s *scene) offering(function string) []int {
	var connections []int
	for _, packet := range wirePackets(s.proxy().Recording()) {
		if packet.direction == gearmantest.ToServer && packet.kind == gearman.PacketCanDo && string(packet.body) == function {
			connections = append(connections, packet.connection)
		}
	}
	return connections
}

// fullIsSilent: nothing asks for builds while no slot is free, and at once when one is.
func fullIsSilent(s *scene) {
	job := s.job(holds)
	running := s.submit(zuulclient.Request{Job: job})
	s.running(running)
	asks := func(from int) (asks []gearman.PacketType) {
		for _, connection := range s.offering("build:" + job) {
			asks = append(asks, s.asks(connection, from)...)
		}
		return asks
	}
	full := len(s.proxy().Recording())
	waiting := s.submit(zuulclient.Request{Job: job})
	for range 5 { // traffic on the other connection, and time
		s.expectStop("unknown", stopArgument("other", 1), gearman.PacketWorkFail)
	}
	s.job(exits) // a function is added meanwhile
	if asks := asks(full); len(asks) > 0 {
		s.Errorf("while full, it sent %v", asks)
	}
	before := len(s.proxy().Recording())
	s.exit(running.State().UUID, 0)
	ended := s.end(running).Completed
	s.eventuallyWithin(10*time.Second, "GRAB_JOB_UNIQ after a slot is free, sooner than anybody looks by himself", func() bool {
		return slices.Contains(asks(before), gearman.PacketGrabJobUniq)
	})
	s.Logf("GRAB_JOB_UNIQ within %v", time.Since(ended))
	s.exit(waiting.State().UUID, 0)
	s.expect(s.end(waiting), zuulclient.Decided, "SUCCESS")
}

// starvation: an endless queue of one function, and one build of another. gearmand without --round-robin prefers the function that was registered
// last as long as the connection lives, which no worker can change; the order of registration is shuffled, so that a reconnect helps.
func starvation(s *scene) {
	if s.flavour == gearmand {
		s.Skip("documented: gearmand without --round-robin serves the function registered last before all others (docs/gearman-servers.md); run it with --round-robin")
	}
	endless, other := s.job(exits), s.job(exits)
	var queue []*zuulclient.Build
	add := func() { queue = append(queue, s.submit(zuulclient.Request{Job: endless})) }
	for range 5 {
		add()
	}
	build := s.submit(zuulclient.Request{Job: other})
	const bound = 10
	for served := 0; !build.State().Ended(); served++ {
		if served > bound {
			s.Fatalf("%d builds of one function, and none of the other", served)
		}
		s.end(queue[served])
		add()
	}
	s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
	for _, build := range queue {
		s.end(build)
	}
}

// manyFunctions: they are registered quickly and on no more connections than few are.
func manyFunctions(s *scene) {
	s.job(exits)
	connections := len(s.serving())
	const perJob, jobs = 250, 12
	var made sync.WaitGroup
	for i := range jobs {
		job := s.jobNamed(fmt.Sprintf("many-%d", i))
		for node := range perJob {
			job.Spec.Nodes = append(job.Spec.Nodes, fmt.Sprintf("node-class-%d", node))
		}
		made.Go(func() {
			if err := s.api.Create(s.Context(), job); err != nil {
				s.Error(err)
			}
		})
	}
	made.Wait()
	served := func() bool {
		time.Sleep(100 * time.Millisecond) // the answer is long
		count := 0
		for _, function := range s.functions() {
			count += min(function.Workers, 1)
		}
		return count >= perJob*jobs+jobs
	}
	s.eventually("all functions", served)
	if now := len(s.serving()); now != connections {
		s.Errorf("%d connections became %d", connections, now)
	}
	quickest := time.Hour // of several, because the machine may be busy with other tests
	for try := 0; try < 3 && quickest > 5*time.Second; try++ {
		cut, before := time.Now(), len(s.serving())
		s.proxy().Cut()
		s.eventually("a new connection", func() bool { return len(s.serving()) > before })
		s.eventually("all functions again", served)
		quickest = min(quickest, time.Since(cut))
	}
	if quickest > 5*time.Second {
		s.Errorf("to connect and register took at least %v", quickest)
	}
	s.kubelet.plays(s.namespace, "many-0", exits)
	s.expect(s.end(s.submit(zuulclient.Request{Job: "many-0", Node: "node-class-249"})), zuulclient.Decided, "SUCCESS")
}

// classPrefix begins the names of node classes that this suite makes: all worlds see them.
const classPrefix = "limited-"

// classLimit: a class that is full, or a job, does not hold up builds that need none of it.
func classLimit(s *scene) {
	// The limit is there from the start: to set it later would move functions of every world to other connections.
	class := &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: classPrefix + s.namespace}, Spec: v1alpha1.ZuulNodeClassSpec{MaxBuilds: 1}}
	s.must(s.api.Create(s.Context(), class))
	s.Cleanup(func() { must(s, s.api.Delete(context.Background(), class)) })
	limited := s.newJob(holds, func(job *v1alpha1.ZuulJob) { job.Spec.Nodes, job.Spec.MaxBuilds = []string{"any"}, 1 })
	classed, free := s.job(holds), s.job(exits)
	for what, request := range map[string]zuulclient.Request{"class": {Job: classed, Node: class.Name}, "job": {Job: limited.Name}} {
		s.awaitFunction(request.Function())
		var builds []*zuulclient.Build
		for range 3 {
			builds = append(builds, s.submit(request))
		}
		for i, build := range builds {
			s.running(build)
			s.expect(s.run(free), zuulclient.Decided, "SUCCESS")
			for _, waiting := range builds[i+1:] {
				if packets := waiting.State().Packets; len(packets) > 0 {
					s.Errorf("%s: a build began though the limit is reached: %v", what, kinds(waiting.State()))
				}
			}
			s.exit(build.State().UUID, 0)
			s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
		}
	}
}

// reload: max-builds in the file of --config is raised and lowered while builds run, and a file that is wrong changes nothing.
func reload(s *scene) {
	s.terminate() // it was started without a file
	file := filepath.Join(s.TempDir(), "zuulbuild.yaml")
	write := func(text string) { // at once, as a kubelet does
		s.must(os.WriteFile(file+".new", []byte(text), 0o600))
		s.must(os.Rename(file+".new", file))
	}
	write("max-builds: 1")
	s.operator = s.startOperator(s.T, "--config", file)
	job := s.job(holds)
	var builds []*zuulclient.Build
	for range 4 {
		builds = append(builds, s.submit(zuulclient.Request{Job: job}))
	}
	s.running(builds[0])
	write("max-builds: many")
	_, err := s.operator.AwaitLine("a whole number was expected", patience)
	s.must(err)
	write("max-builds: 2")
	s.running(builds[1])
	write("max-builds: 1")
	_, err = s.operator.AwaitLine(`"from":"2","to":"1"`, patience)
	s.must(err)
	s.job(exits) // whose functions are offered under the new limit
	for i, build := range builds {
		s.running(build)
		s.exit(build.State().UUID, 0)
		s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
		for _, waiting := range builds[min(len(builds), max(2, i+2)):] {
			if packets := waiting.State().Packets; len(packets) > 0 {
				s.Errorf("a build began though there is no room after build %d: %v", i, kinds(waiting.State()))
			}
		}
	}
}
