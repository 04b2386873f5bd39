//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiwait "k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/hack/localcluster"
	"zuulbuild.dev/zuulbuild/hack/programs"
	"zuulbuild.dev/zuulbuild/test/e2e/auditlog"
)

const (
	// scaleVariable has TestScale run, with so many builds, and seedVariable has it run those of an earlier run, with kills at the same times.
	scaleVariable, seedVariable = "ZUULBUILD_SCALE", "ZUULBUILD_SEED"

	scaleInAll, scaleOfClass, scaleOfJob = 50, 10, 3
	// scaleJob may have as many builds at once as there may be, scaleLimitedJob only scaleOfJob. scaleClass may have scaleOfClass.
	scaleJob, scaleLimitedJob, scaleClass = "scale", "scale-limited", localcluster.KwokNodeName
	// shortestScaleBuild and longestScaleBuild are how long the simulated Pods run; between them it is for kwok's chance.
	shortestScaleBuild, longestScaleBuild = time.Second, 15 * time.Second
	// killAfter and killBefore are how long an operator lives.
	killAfter, killBefore = 3 * time.Second, 5 * time.Second
	// writesOfScaleBuild is how often the operator may write for a build that nothing disturbs and that waits for nothing.
	writesOfScaleBuild = 6
)

// scale is a Zuul and people with many builds, and an operator that is killed all the time.
type scale struct {
	*testing.T
	ctx     context.Context
	seed    uint64
	random  *rand.Rand // which builds there are
	gearman string
	log     string // of all operators
	zuul    *zuulclient.Client

	operator *programs.Program
	kills    int
}

// scalePart are some of the builds, which were asked for at once.
type scalePart struct {
	zuul, hand []string // names: those that Zuul asked for, and those made by hand
	took       time.Duration
}

func (p scalePart) names() []string { return slices.Concat(p.zuul, p.hand) }

// TestScale: however often the operator is killed, no limit is exceeded at any moment, each build has one Pod and one end, and an undisturbed one costs
// few writes. The audit log of the API server is what is believed.
func TestScale(t *testing.T) {
	count := countOf(t, scaleVariable)
	s := newScale(t, count)
	s.start()

	undisturbed := s.run(count / 5)
	s.clearAway(undisturbed.names())

	stop := s.killRegularly()
	defer stop()
	disturbed := s.run(count - count/5)
	stop()

	entries, err := auditlog.Read(cluster.AuditLog())
	s.must(err)
	s.report(undisturbed, disturbed, s.limits(entries, slices.Concat(undisturbed.names(), disturbed.names())), s.writes(entries, undisturbed))
}

// countOf reads a number of builds from the environment, without which the test is skipped.
func countOf(t *testing.T, variable string) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		t.Skipf("%s is not set", variable)
	}
	count, err := strconv.Atoi(text)
	if err != nil || count < 10 {
		t.Fatalf("%s is %q; a number of at least 10 was expected", variable, text)
	}
	return count
}

func newScale(t *testing.T, count int) *scale {
	s := &scale{T: t, seed: uint64(time.Now().UnixNano()), log: filepath.Join(t.TempDir(), "operator.log")}
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		s.seed, err = strconv.ParseUint(text, 10, 64)
		s.must(err)
	}
	t.Logf("%s=%d %s=%d", scaleVariable, count, seedVariable, s.seed)
	s.random = rand.New(rand.NewPCG(s.seed, 0))
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithTimeout(t.Context(), 3*time.Minute+time.Duration(count)*time.Second)
	t.Cleanup(cancel)

	objects := []client.Object{&v1alpha1.ZuulNodeClass{
		ObjectMeta: metav1.ObjectMeta{Name: scaleClass}, Spec: v1alpha1.ZuulNodeClassSpec{Tolerations: toSimulatedNodes, MaxBuilds: scaleOfClass},
	}}
	for name, limit := range map[string]int32{scaleJob: 0, scaleLimitedJob: scaleOfJob} {
		job := simulatedJob(name, shortestScaleBuild, longestScaleBuild)
		job.Spec.MaxBuilds = limit
		objects = append(objects, job)
	}
	for _, object := range objects {
		s.must(kubernetes.Create(s.ctx, object))
	}

	s.gearman = gearmantest.StartGearmand(t)
	s.zuul = dial(t, s.gearman, zuulclient.Zuul2)
	t.Cleanup(func() {
		if s.operator != nil {
			s.operator.Kill()
		}
		if t.Failed() {
			log, _ := os.ReadFile(s.log)
			t.Logf("end of the log of the operators:\n%s", log[max(0, len(log)-1<<17):])
		}
	})
	return s
}

var toSimulatedNodes = []corev1.Toleration{{Key: localcluster.KwokTaint, Operator: corev1.TolerationOpExists}}

// simulatedJob is a job whose Pods are simulated and succeed after a time between the two, by kwok's chance. They are deleted when they have ended.
func simulatedJob(name string, shortest, longest time.Duration) *v1alpha1.ZuulJob {
	return &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1alpha1.ZuulJobSpec{
		Retention: &v1alpha1.Retention{Pod: &metav1.Duration{}},
		Template: &corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
				localcluster.KwokDurationAnnotation: shortest.String(), localcluster.KwokLongestAnnotation: longest.String(),
			}},
			Spec: corev1.PodSpec{
				Containers:   []corev1.Container{{Name: v1alpha1.MainContainerName, Image: localcluster.BusyboxImage}},
				NodeSelector: map[string]string{localcluster.NodeLabel: localcluster.KwokNodeName}, Tolerations: toSimulatedNodes,
			},
		},
	}}
}

func (s *scale) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// start starts an operator.
func (s *scale) start() {
	s.Helper()
	var err error
	s.operator, err = programs.StartBound(s.log, program, operatorArguments(s.gearman, "--max-builds", strconv.Itoa(scaleInAll))...)
	if err != nil {
		s.Error(err)
	}
}

// killRegularly has every operator killed a few seconds after its start, until stop is called, and the next one started at once.
func (s *scale) killRegularly() (stop func()) {
	ctx, cancel := context.WithCancel(s.ctx)
	random := rand.New(rand.NewPCG(s.seed, 1))
	var killing sync.WaitGroup
	killing.Go(func() {
		for !s.Failed() {
			select {
			case <-time.After(killAfter + time.Duration(random.Int64N(int64(killBefore-killAfter)))):
			case <-s.operator.Ended():
				s.Error("the operator ended by itself")
				return
			case <-ctx.Done():
				return
			}
			s.operator.Kill()
			s.kills++
			s.start()
		}
	})
	return func() {
		cancel()
		killing.Wait()
	}
}

// run has builds run and returns when all have ended, as they should.
func (s *scale) run(count int) scalePart {
	s.Helper()
	for _, function := range []string{scaleJob, scaleLimitedJob, scaleJob + ":" + scaleClass, scaleLimitedJob + ":" + scaleClass} {
		awaitFunction(s.T, s.zuul, "build:"+function)
	}
	part := scalePart{}
	begun := time.Now()
	var asked []*zuulclient.Build
	for range count {
		request := s.choose()
		if s.random.IntN(4) == 0 {
			part.hand = append(part.hand, request.UUID)
			s.must(kubernetes.Create(s.ctx, &v1alpha1.ZuulBuild{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: request.UUID}, Spec: v1alpha1.ZuulBuildSpec{Job: request.Job, Node: request.Node},
			}))
			continue
		}
		part.zuul = append(part.zuul, request.UUID)
		build, err := s.zuul.Submit(s.ctx, request)
		s.must(err)
		asked = append(asked, build)
	}
	for _, build := range asked {
		state, err := build.Wait(s.ctx)
		s.must(err)
		s.expectTold(state)
	}
	s.expectStored(part.names())
	part.took = time.Since(begun)
	return part
}

// choose is the next build: one in twenty of the job with a limit, one in five on the class with a limit, whatever its job.
func (s *scale) choose() zuulclient.Request {
	var unique [16]byte
	for i := range unique {
		unique[i] = byte(s.random.Uint32())
	}
	request := zuulclient.Request{Job: scaleJob, UUID: hex.EncodeToString(unique[:]), Unchecked: true}
	if s.random.IntN(20) == 0 {
		request.Job = scaleLimitedJob
	}
	if s.random.IntN(5) == 0 {
		request.Node = scaleClass
	}
	return request
}

// expectTold: Zuul was told of one start and one end, SUCCESS.
func (s *scale) expectTold(state zuulclient.State) {
	s.Helper()
	expectResult(s.T, state, "SUCCESS")
	if ends := endsOf(state); ends != 1 {
		s.Errorf("%s ended %d times", state.UUID, ends)
	}
}

// endsOf counts the packets that end a build.
func endsOf(state zuulclient.State) (ends int) {
	for _, packet := range state.Packets {
		if packet.Type == gearman.PacketWorkComplete || packet.Type == gearman.PacketWorkFail {
			ends++
		}
	}
	return ends
}

// expectStored waits until all of the builds are complete, and looks at what became of them.
func (s *scale) expectStored(names []string) {
	s.Helper()
	builds := map[string]*v1alpha1.ZuulBuild{}
	complete := func(name string) bool { return builds[name] == nil || builds[name].Complete() }
	err := apiwait.PollUntilContextCancel(s.ctx, time.Second, true, func(ctx context.Context) (bool, error) {
		builds = storedBuilds(ctx, s.T)
		for _, name := range names {
			if !complete(name) {
				return false, nil
			}
		}
		return true, nil
	})
	for _, name := range names {
		build := builds[name]
		switch {
		case build == nil:
			s.Errorf("build %s is gone", name)
		case build.Status.Phase != v1alpha1.PhaseSucceeded || build.Status.Result != "SUCCESS":
			s.Errorf("build %s of %s is %s with result %q: %s %s", name, build.Spec.Job, build.Status.Phase, build.Status.Result, build.Status.Reason,
				build.Status.Message)
		}
	}
	s.must(err)
}

// storedBuilds are all builds there are, by name.
func storedBuilds(ctx context.Context, t *testing.T) map[string]*v1alpha1.ZuulBuild {
	t.Helper()
	list := v1alpha1.ZuulBuildList{}
	if err := kubernetes.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	builds := make(map[string]*v1alpha1.ZuulBuild, len(list.Items))
	for i := range list.Items {
		builds[list.Items[i].Name] = &list.Items[i]
	}
	return builds
}

// clearAway has the builds deleted because their time is over, and keeps those to come for good.
func (s *scale) clearAway(names []string) {
	s.Helper()
	s.retain(&metav1.Duration{Duration: time.Second})
	s.must(apiwait.PollUntilContextCancel(s.ctx, time.Second, true, func(ctx context.Context) (bool, error) {
		builds := storedBuilds(ctx, s.T)
		return !slices.ContainsFunc(names, func(name string) bool { return builds[name] != nil }), nil
	}))
	s.retain(nil)
}

// retain sets how long builds are kept.
func (s *scale) retain(duration *metav1.Duration) {
	s.Helper()
	for _, name := range []string{scaleJob, scaleLimitedJob} {
		job := &v1alpha1.ZuulJob{}
		s.must(kubernetes.Get(s.ctx, client.ObjectKey{Namespace: namespace, Name: name}, job))
		before := job.DeepCopy()
		job.Spec.Retention.Build = duration
		s.must(kubernetes.Patch(s.ctx, job, client.MergeFrom(before)))
	}
}

// limits compares the most Pods there ever were at once with what is allowed, and returns rows that tell.
func (s *scale) limits(entries []auditlog.Entry, names []string) (rows [][]any) {
	s.Helper()
	ours := map[string]bool{}
	for _, name := range names {
		ours[name] = true
	}
	const inAll, ofClass, ofJob = "in all", "on class " + scaleClass, "of job " + scaleLimitedJob
	history, err := auditlog.Replay(entries, func(pod *auditlog.Pod) []string {
		if !ours[pod.Name] {
			return nil
		}
		groups := []string{inAll, pod.Name}
		if pod.Class == scaleClass {
			groups = append(groups, ofClass)
		}
		if pod.Job == scaleLimitedJob {
			groups = append(groups, ofJob)
		}
		return groups
	})
	s.must(err)
	for _, limit := range []struct {
		group string
		most  int
	}{{inAll, scaleInAll}, {ofClass, scaleOfClass}, {ofJob, scaleOfJob}} {
		peak := history.Peaks[limit.group]
		if peak.Count > limit.most {
			s.Errorf("from revision %d on there were %d Pods %s, %d are allowed: %v", peak.Revision, peak.Count, limit.group, limit.most, peak.Pods)
		}
		if peak.Count < limit.most && len(names) >= 10*scaleInAll {
			s.Errorf("there were never more than %d Pods %s, so the limit of %d was not tried", peak.Count, limit.group, limit.most)
		}
		rows = append(rows, []any{"most Pods at once " + limit.group, fmt.Sprintf("%d of %d", peak.Count, limit.most)})
	}

	pods, unanswered := map[string]int{}, 0
	for _, pod := range history.Pods {
		pods[pod.Name]++
		if ours[pod.Name] && pod.Unanswered {
			unanswered++
		}
	}
	for _, name := range names {
		if pods[name] != 1 {
			s.Errorf("build %s had %d Pods", name, pods[name])
		}
	}
	return append(rows, []any{"Pods whose creation the killed operator was not told of", unanswered})
}

// writes counts what the undisturbed builds cost, and returns rows that tell. For those that had to wait one more says so.
func (s *scale) writes(entries []auditlog.Entry, part scalePart) (rows [][]any) {
	s.Helper()
	writes := auditlog.Writes(entries, filepath.Base(program)+"/")
	var atOnce, waited []int
	for _, name := range part.names() {
		number := len(writes[name])
		most := writesOfScaleBuild
		if slices.ContainsFunc(writes[name], auditlog.Write.SaysWait) {
			most++
			waited = append(waited, number)
		} else {
			atOnce = append(atOnce, number)
		}
		if number == 0 || number > most {
			s.Errorf("build %s cost %d writes, want at most %d: %v", name, number, most, writes[name])
		}
	}
	if len(atOnce) == 0 {
		s.Error("every undisturbed build had to wait")
	}
	return [][]any{
		{"undisturbed builds that did not wait, and their writes, max / mean", fmt.Sprintf("%d: %s", len(atOnce), maxAndMean(atOnce))},
		{"undisturbed builds that waited, and their writes, max / mean", fmt.Sprintf("%d: %s", len(waited), maxAndMean(waited))},
	}
}

func maxAndMean(numbers []int) string {
	sum, most := 0, 0
	for _, number := range numbers {
		sum, most = sum+number, max(most, number)
	}
	return fmt.Sprintf("%d / %.2f", most, float64(sum)/float64(max(1, len(numbers))))
}

// report prints a table.
func (s *scale) report(undisturbed, disturbed scalePart, rows ...[][]any) {
	table := [][]any{{"seed", s.seed}}
	for _, part := range []struct {
		name string
		scalePart
	}{{"undisturbed", undisturbed}, {"while operators were killed", disturbed}} {
		table = append(table, []any{
			"builds " + part.name, fmt.Sprintf("%d by Zuul, %d by hand, in %.0f s", len(part.zuul), len(part.hand), part.took.Seconds()),
		})
	}
	logTable(s.T, slices.Concat(table, [][]any{{"operators killed", s.kills}}, slices.Concat(rows...)))
}

// logTable prints rows of a name and a value.
func logTable(t *testing.T, rows [][]any) {
	t.Helper()
	text := &bytes.Buffer{}
	table := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		_, _ = fmt.Fprintf(table, "%v\t%v\n", row[0], row[1])
	}
	_ = table.Flush()
	t.Logf("\n%s", text)
}
