//go:build linux

package conformance

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/hack/dashboard"
	"zuulbuild.dev/zuulbuild/hack/programs"
)

// dashboardVariable has TestDashboard run, and names the picture it takes, FILE.png. The page that the picture is of is beside it, as FILE.html.
const dashboardVariable = "ZUULBUILD_DASHBOARD"

const (
	shownFor = 150 * time.Second
	// sentFor is shorter, so that the queue is empty in the end.
	sentFor  = 100 * time.Second
	scraping = time.Second
)

// TestDashboard has two replicas go through all that the dashboard of the chart tells of, with a real Prometheus that looks on, and draws the
// dashboard as Grafana would. It fails where Prometheus does not take an expression, and tells which panels have no data or cannot be read.
func TestDashboard(t *testing.T) {
	picture := os.Getenv(dashboardVariable)
	if picture == "" {
		t.Skipf("%s is not set", dashboardVariable)
	}
	gearmantest.NeedGearmand(t)
	board, err := dashboard.Read("../../charts/zuulbuild/files/dashboard.json")
	must(t, err)
	s := &shift{scene: newScene(t, "dashboard", newSuite(t).newWorld(t, gearmand, 2, "--max-builds", "8", "--grace-period", "3s"))}
	prometheus := s.observed()

	begun := time.Now()
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithTimeout(t.Context(), shownFor)
	defer cancel()
	s.work()
	<-s.ctx.Done()

	over := v1.Range{Start: begun, End: time.Now(), Step: scraping}
	panels, err := board.Evaluate(t.Context(), prometheus, over, scraping)
	must(t, err)
	for _, panel := range panels {
		for _, refused := range panel.Refused {
			t.Errorf("panel %q: Prometheus refuses %s", panel.Title, refused)
		}
		for _, note := range panel.Notes {
			t.Logf("panel %q: %s", panel.Title, note)
		}
	}
	page, err := board.Draw("a run of make dashboard", panels, over)
	must(t, err)
	must(t, os.WriteFile(strings.TrimSuffix(picture, ".png")+".html", page.HTML, 0o644))
	must(t, page.Photograph(t.Context(), picture))
}

// shift is a busy time in the life of two replicas.
type shift struct {
	*scene
	ctx      context.Context // ends with it
	metrics  []string        // addresses, one for each replica there will be
	replicas []*programs.Program
	asked    []string // jobs
	class    string
}

// observed starts the replicas and a Prometheus that scrapes them, with the labels that a ServiceMonitor gives.
func (s *shift) observed() *dashboard.Prometheus {
	s.Helper()
	var scraped []dashboard.Scraped
	for i := range 3 {
		address, err := programs.FreeAddress()
		s.must(err)
		s.metrics = append(s.metrics, address)
		scraped = append(scraped, dashboard.Scraped{Address: address, Labels: map[string]string{
			"namespace": "zuulbuild-system", "service": "zuulbuild-metrics", "endpoint": "metrics", "container": "operator", "pod": "zuulbuild-" + strconv.Itoa(i),
		}})
	}
	prometheus, err := dashboard.StartPrometheus(s.TempDir(), scraping, scraped...)
	s.must(err)
	s.Cleanup(prometheus.Stop)
	s.terminate() // it was started alone
	s.startReplica()
	s.startReplica()
	return prometheus
}

func (s *shift) startReplica() {
	s.Helper()
	address := s.metrics[len(s.replicas)]
	s.replicas = append(s.replicas, s.startOperator(s.T, "--leader-elect", "--leader-namespace", s.namespace, "--metrics-address", address))
}

// work has builds of every kind come from two Zuuls while things go wrong. What becomes of each build is for other tests to tell.
func (s *shift) work() {
	s.Helper()
	class := &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: "large"}, Spec: v1alpha1.ZuulNodeClassSpec{MaxBuilds: 2}}
	s.must(s.api.Create(s.ctx, class))
	s.Cleanup(func() { must(s, s.api.Delete(context.Background(), class)) })
	s.class = class.Name
	for _, name := range []string{"unit-tests", "integration-tests", "docs"} {
		s.asked = append(s.asked, s.job(holds, func(job *v1alpha1.ZuulJob) { job.Name = name }))
	}
	s.awaitFunction("build:" + s.asked[0] + ":" + s.class)

	zuuls := []*zuulclient.Client{s.zuul, s.dialServer(s.servers[1], zuulclient.Branch)}
	leaver := s.dial(zuulclient.Zuul2)
	sending, cancel := context.WithTimeout(s.ctx, sentFor)
	defer cancel()
	var sent, followed sync.WaitGroup
	for i, zuul := range zuuls {
		sent.Go(func() {
			s.send(sending, zuul, rand.New(rand.NewPCG(uint64(i), 0)), func(follow func()) { followed.Go(follow) })
		})
	}
	// The network before the first server is away for a while.
	if pause(s.ctx, 25*time.Second) {
		s.proxy().Refuse(true)
		s.proxy().Cut()
		pause(s.ctx, 8*time.Second)
		s.proxy().Refuse(false)
	}
	// A Zuul goes, and with it whoever waits for its builds.
	for range 3 {
		s.submitBy(leaver, s.request(20*time.Second, 0))
	}
	if pause(s.ctx, 15*time.Second) {
		s.must(leaver.Close())
	}
	// The leader dies.
	if pause(s.ctx, 20*time.Second) {
		s.awaitLeader(s.replicas).Kill()
		s.startReplica()
	}
	sent.Wait()
	followed.Wait()
}

// request is for a build of the first job whose Pod runs for a while and ends with the code.
func (s *shift) request(duration time.Duration, code int32) zuulclient.Request {
	request := zuulclient.Request{Job: s.asked[0], UUID: zuulclient.NewUUID(), Unchecked: true}
	request.Parameters = map[string]any{"ZUUL_PROJECT": "sandbox", "ZUUL_PIPELINE": "check", "ZUUL_CHANGE": request.UUID}
	s.kubelet.playsPod(s.namespace, request.UUID, runsFor(duration, code))
	return request
}

// send has a Zuul send builds, some of which are stopped, described, refused, lost or cannot run, until ctx ends.
func (s *shift) send(ctx context.Context, zuul *zuulclient.Client, random *rand.Rand, aside func(func())) {
	for number := 1; pause(ctx, time.Second+rand.N(time.Second)); number++ {
		duration, code := 2*time.Second+time.Duration(random.Int64N(int64(10*time.Second))), int32(0)
		switch {
		case number%9 == 0:
			code = evicted
		case number%4 == 0:
			code = 1
		}
		request := s.request(duration, code)
		request.Job = s.asked[random.IntN(len(s.asked))]
		if random.IntN(3) == 0 {
			request.Node = s.class
		}
		if number%17 == 0 {
			s.kubelet.playsPod(s.namespace, request.UUID, waits+"InvalidImageName")
		}
		if number%20 == 0 {
			request.Payload = []byte("[]") // not what parameters are
		}
		build, err := zuul.Submit(ctx, request)
		if err != nil {
			if ctx.Err() == nil {
				s.Error(err)
			}
			return
		}
		switch {
		case number%7 == 0:
			aside(func() { s.stop(ctx, build) })
		case number%5 == 0:
			aside(func() { s.describe(ctx, build) })
		case number%13 == 0:
			aside(func() { s.command(ctx, zuul, "stop:"+manager, stopArgument("nobody", number)) })
		}
	}
}

// stop cancels a build as soon as it runs.
func (s *shift) stop(ctx context.Context, build *zuulclient.Build) {
	if !s.runs(ctx, build) {
		return
	}
	cancellation, err := build.Cancel(ctx)
	if err == nil && cancellation.Stop != nil {
		_, err = cancellation.Stop.Wait(ctx)
	}
	s.note("stop", err)
}

func (s *shift) describe(ctx context.Context, build *zuulclient.Build) {
	if !s.runs(ctx, build) {
		return
	}
	task, err := build.Describe(ctx, "<b>about</b> this build")
	if err == nil {
		_, err = task.Wait(ctx)
	}
	s.note("set_description", err)
}

func (s *shift) command(ctx context.Context, zuul *zuulclient.Client, function string, argument []byte) {
	task, err := zuul.Gearman.Submit(ctx, gearman.PriorityHigh, function, zuulclient.NewUUID(), argument)
	if err == nil {
		_, err = task.Wait(ctx)
	}
	s.note(function, err)
}

// runs waits until a build runs; false says that it ended, or ctx did.
func (s *shift) runs(ctx context.Context, build *zuulclient.Build) bool {
	_, err := build.Await(ctx, func(state zuulclient.State) bool { return len(state.Packets) >= 4 })
	return err == nil
}

// note tells of what did not come to its end, though there was the time.
func (s *shift) note(what string, err error) {
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		s.Logf("%s: %v", what, err)
	}
}

// pause waits, and tells whether ctx goes on.
func pause(ctx context.Context, duration time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(duration):
		return true
	}
}
