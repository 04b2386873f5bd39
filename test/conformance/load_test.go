//go:build linux

package conformance

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// loadVariable has TestLoad run, with so many builds.
const loadVariable = "ZUULBUILD_LOAD"

const (
	stopsUnderLoad = 200
	stopsOver      = 10 * time.Second
	// stopWithin is for all but a hundredth of the answers to stop:. Zuul waits for none, but what it sends meanwhile waits in the server.
	stopWithin = 50 * time.Millisecond
)

// scale reads a number from the environment.
func scale(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	number, err := strconv.Atoi(text)
	if err != nil || number < 1 {
		t.Fatalf("%s is %q; a number of at least 1 was expected", variable, text)
	}
	return number
}

// TestLoad: with thousands of builds in flight stop: is answered as ever, and no build is lost or run twice.
func TestLoad(t *testing.T) {
	count := scale(t, loadVariable, 0)
	if count == 0 {
		t.Skipf("%s is not set", loadVariable)
	}
	gearmantest.NeedGearmand(t)
	suite := newSuite(t)
	yieldToOthers(t, "kube-apiserver", "etcd")
	w := suite.newWorld(t, gearmand, 1, "--max-builds", strconv.Itoa(count+count/4))
	s := newScene(t, "load", w)
	history := newPodHistory(t, suite.kubelet.pods, w.namespace)
	job := s.job(holds)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()

	// All are submitted at once, half by a Zuul of each dialect.
	dialects := []*zuulclient.Client{s.zuul, s.dial(zuulclient.Branch)}
	builds := make([]*zuulclient.Build, count)
	begun := time.Now()
	submitting := sync.WaitGroup{}
	for first, zuul := range dialects {
		submitting.Go(func() {
			for i := first; i < count; i += len(dialects) {
				request := zuulclient.Request{Job: job, Unchecked: true, Parameters: map[string]any{"ZUUL_CHANGE": strconv.Itoa(i), "ZUUL_PATCHSET": "1"}}
				var err error
				if builds[i], err = zuul.Submit(ctx, request); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	submitting.Wait()
	if t.Failed() {
		return
	}
	awaitAll(ctx, t, builds, "begin", func(state zuulclient.State) bool { return len(state.Packets) > 0 })
	begin := time.Since(begun)
	awaitAll(ctx, t, builds, "run", func(state zuulclient.State) bool { return len(state.Packets) >= 4 })
	running := time.Since(begun)
	starts := make([]time.Duration, 0, count)
	for _, build := range builds {
		state := build.State()
		starts = append(starts, state.Started.Sub(state.Submitted))
	}

	stopped := builds[:min(stopsUnderLoad, count/2)]
	answers, described := stopAll(ctx, t, stopped, builds[count/2:])

	ending := time.Now()
	for _, build := range builds[len(stopped):] {
		suite.kubelet.playsPod(w.namespace, build.State().UUID, runsFor(0, 0))
	}
	awaitAll(ctx, t, builds, "end", zuulclient.State.Ended)
	end := time.Since(ending)

	packets := w.audit(t, 0)
	balance(t, packets, builds)
	for i, build := range builds {
		state := build.State()
		want, result := zuulclient.Decided, "SUCCESS"
		if i < len(stopped) {
			want, result = zuulclient.Canceled, "ABORTED"
		}
		s.expect(state, want, result)
		for _, violation := range state.Violations {
			t.Errorf("%s: packet %d breaks rule %s: %s", state.UUID, violation.Packet, violation.Rule, violation.Text)
		}
	}
	pods := history.counts()
	for _, build := range builds {
		if unique := build.State().UUID; pods[unique] != 1 {
			t.Errorf("%s had %d Pods", unique, pods[unique])
		}
	}
	if len(pods) != count {
		t.Errorf("Pods of %d builds for %d uniques", len(pods), count)
	}
	slices.Sort(starts)
	slices.Sort(answers)
	slices.Sort(described)
	inside := commandTimes(packets, "stop:"+manager)
	perSecond := func(number int, took time.Duration) string {
		return fmt.Sprintf("%.1f/s (%.1f s)", float64(number)/took.Seconds(), took.Seconds())
	}
	report(t, [][]any{
		{"builds in flight", count},
		{"submitted to first WORK_DATA, median", percentile(starts, 50)},
		{"submitted to first WORK_DATA, p99", percentile(starts, 99)},
		{"builds begun", perSecond(count, begin)},
		{"builds begun and running", perSecond(count, running)},
		{"builds ended", perSecond(count-len(stopped), end)},
		{"stop: answered", len(answers)},
		{"stop:, median", percentile(answers, 50)},
		{"stop:, p99", percentile(answers, 99)},
		{"stop:, max", percentile(answers, 100)},
		{"stop:, of that in the operator, median", percentile(inside, 50)},
		{"stop:, of that in the operator, p99", percentile(inside, 99)},
		{"stop:, of that in the operator, max", percentile(inside, 100)},
		{"set_description: answered", len(described)},
		{"set_description:, median", percentile(described, 50)},
		{"set_description:, p99", percentile(described, 99)},
	})
	if p99 := percentile(answers, 99); p99 > stopWithin {
		t.Errorf("p99 of the answers to stop: is %v, more than %v", p99, stopWithin)
	}
}

// yieldToOthers gives processes that the test has started a low priority. Elsewhere they have machines of their own; here they would take all the cores
// in between a packet and its answer, and what is measured would be the scheduler of this machine.
func yieldToOthers(t *testing.T, names ...string) {
	t.Helper()
	const niceness = 10
	tasks, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	must(t, err)
	yielding := 0
	for _, task := range tasks {
		// PID (NAME) STATE PARENT …
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(task)), "stat"))
		if err != nil {
			continue // it has ended meanwhile
		}
		name := string(stat[bytes.IndexByte(stat, '(')+1 : bytes.LastIndexByte(stat, ')')])
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, name) }) || fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		id, err := strconv.Atoi(filepath.Base(task))
		must(t, err)
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, id, niceness); err == nil {
			yielding++
		}
	}
	if yielding == 0 {
		t.Fatalf("none of %v was found", names)
	}
}

func awaitAll(ctx context.Context, t *testing.T, builds []*zuulclient.Build, what string, condition func(zuulclient.State) bool) {
	t.Helper()
	missing := 0
	var first error
	for _, build := range builds {
		if _, err := build.Await(ctx, condition); err != nil {
			missing++
			first = cmp.Or(first, err)
		}
	}
	if missing > 0 {
		t.Fatalf("%d of %d builds did not %s; the first: %v", missing, len(builds), what, first)
	}
}

// stopAll cancels the first builds, evenly over stopsOver, and describes one of the others beside each, and waits for the answers. It returns how long
// each took.
func stopAll(ctx context.Context, t *testing.T, stopped, described []*zuulclient.Build) (stops, descriptions []time.Duration) {
	t.Helper()
	var mu sync.Mutex
	var asking sync.WaitGroup
	ask := func(what string, times *[]time.Duration, submit func() (*gearman.Task, error)) {
		asking.Go(func() {
			asked := time.Now()
			task, err := submit()
			if err != nil {
				t.Errorf("%s: %v", what, err)
				return
			}
			answer, err := task.Wait(ctx)
			took := time.Since(asked)
			if err != nil || answer.Type != gearman.PacketWorkComplete || len(answer.Data) > 0 {
				t.Errorf("%s was answered with %v %q, error %v", what, answer.Type, answer.Data, err)
			}
			mu.Lock()
			defer mu.Unlock()
			*times = append(*times, took)
		})
	}
	ticker := time.NewTicker(stopsOver / stopsUnderLoad)
	defer ticker.Stop()
	for i, build := range stopped {
		ask("stop:", &stops, func() (*gearman.Task, error) {
			cancellation, err := build.Cancel(ctx)
			if err == nil && cancellation.Stop == nil {
				err = fmt.Errorf("%s was taken from the queue", build.State().UUID)
			}
			return cancellation.Stop, err
		})
		ask("set_description:", &descriptions, func() (*gearman.Task, error) {
			return described[i%len(described)].Describe(ctx, fmt.Sprintf("<b>load</b> %d", i))
		})
		<-ticker.C
	}
	asking.Wait()
	return stops, descriptions
}

// commandTimes are how long the operator had each job of a function, sorted.
func commandTimes(packets []wirePacket, function string) []time.Duration {
	since := map[string]time.Time{}
	var times []time.Duration
	for _, packet := range packets {
		switch {
		case packet.kind == gearman.PacketJobAssignUniq && packet.assigned().function == function:
			since[packet.handle()] = packet.at
		case packet.finishes() && packet.direction == gearmantest.ToServer:
			if begun, ours := since[packet.handle()]; ours {
				times = append(times, packet.at.Sub(begun))
			}
		}
	}
	slices.Sort(times)
	return times
}

// balance compares what the operator sent with what Zuul received, by type, and counts the ends of each handle.
func balance(t *testing.T, packets []wirePacket, builds []*zuulclient.Build) {
	t.Helper()
	sent, received := map[gearman.PacketType]int{}, map[gearman.PacketType]int{}
	handles, ends := map[string]int{}, map[string]int{}
	for _, build := range builds {
		state := build.State()
		handles[state.Handle] = 0
		for _, packet := range state.Packets {
			received[packet.Type]++
			if packet.Type == gearman.PacketWorkComplete || packet.Type == gearman.PacketWorkFail {
				ends[state.Handle]++
			}
		}
	}
	for _, packet := range packets {
		handle := packet.handle()
		if _, ours := handles[handle]; !ours || packet.direction != gearmantest.ToServer || !strings.HasPrefix(packet.kind.String(), "WORK_") {
			continue
		}
		sent[packet.kind]++
		if packet.finishes() {
			handles[handle]++
		}
	}
	rows := [][]any{{"packet", "sent by the operator", "received by Zuul"}}
	for _, kind := range []gearman.PacketType{
		gearman.PacketWorkData, gearman.PacketWorkStatus, gearman.PacketWorkComplete, gearman.PacketWorkFail, gearman.PacketWorkWarning, gearman.PacketWorkException,
	} {
		rows = append(rows, []any{kind, sent[kind], received[kind]})
		if sent[kind] != received[kind] {
			t.Errorf("%v: %d were sent, %d received", kind, sent[kind], received[kind])
		}
	}
	report(t, rows)
	for handle, finishes := range handles {
		if finishes != 1 || ends[handle] != 1 {
			t.Errorf("%s has %d finishing packets, of which Zuul received %d", handle, finishes, ends[handle])
		}
	}
}

// report prints a table.
func report(t *testing.T, rows [][]any) {
	t.Helper()
	text := &bytes.Buffer{}
	table := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if duration, is := cell.(time.Duration); is {
				cell = duration.Round(100 * time.Microsecond)
			}
			if i > 0 {
				_, _ = fmt.Fprint(table, "\t")
			}
			_, _ = fmt.Fprint(table, cell)
		}
		_, _ = fmt.Fprintln(table)
	}
	_ = table.Flush()
	t.Logf("\n%s", text)
}
