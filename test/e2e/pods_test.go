//go:build linux

package e2e

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/test/recorded"
)

// recordVariable has all cases run, the slow ones too, and what came of them written down. It is `make record`.
const recordVariable = "ZUULBUILD_RECORD"

// fullNamespace has a quota that is used up.
const fullNamespace = "builds-full"

// trustedClass allows its builds every level of Pod Security.
const trustedClass = "trusted"

// patient is more than the slowest case takes: the node's grace, its taint, and the five minutes after which it counts as lost.
const patient = 10 * time.Minute

// TestPods makes each case happen on the real cluster, to a build that a Zuul asked for through gearmand.
func TestPods(t *testing.T) {
	address := gearmantest.StartGearmand(t)
	startOperator(t, address)
	prepareFullNamespace(t)
	prepareTrustedClass(t)
	run := &caseRun{recorder: startRecorder(t), zuul: dial(t, address, zuulclient.Zuul2), all: os.Getenv(recordVariable) != ""}
	var names []string
	for _, group := range caseGroups {
		for _, c := range group.cases {
			names = append(names, c.name)
		}
		t.Run(strings.ReplaceAll(group.name, " ", "-"), func(t *testing.T) {
			for _, c := range group.cases {
				t.Run(c.name, func(t *testing.T) {
					if !group.alone {
						t.Parallel()
					}
					came := run.one(t, c)
					came.Group = group.name
					if !t.Failed() {
						run.note(came)
					}
				})
			}
		})
	}
	if run.all {
		if err := recorded.Write(run.came, names); err != nil {
			t.Fatal(err)
		}
	}
}

// prepareFullNamespace makes the namespace that no Pod fits into.
func prepareFullNamespace(t *testing.T) {
	t.Helper()
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: fullNamespace, Name: "none"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}},
	}
	for _, object := range []client.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fullNamespace}}, quota} {
		if err := kubernetes.Create(t.Context(), object); client.IgnoreAlreadyExists(err) != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the quota counts", func() bool {
		err := kubernetes.Get(t.Context(), client.ObjectKeyFromObject(quota), quota)
		return err == nil && len(quota.Status.Hard) > 0
	})
}

// prepareTrustedClass makes the node class that allows all that a namespace allows.
func prepareTrustedClass(t *testing.T) {
	t.Helper()
	class := &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: trustedClass}, Spec: v1alpha1.ZuulNodeClassSpec{
		NodeSelector: map[string]string{corev1.LabelOSStable: "linux"}, PodSecurity: "privileged",
	}}
	if err := kubernetes.Create(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := kubernetes.Delete(context.Background(), class); err != nil {
			t.Error(err)
		}
	})
}

// caseRun runs cases, and keeps what came of them.
type caseRun struct {
	recorder *recorder
	zuul     *zuulclient.Client
	all      bool // the slow ones too

	mu   sync.Mutex
	came []recorded.Case
}

func (run *caseRun) note(came recorded.Case) {
	run.mu.Lock()
	defer run.mu.Unlock()
	run.came = append(run.came, came)
}

// one makes a case happen.
func (run *caseRun) one(t *testing.T, c podCase) recorded.Case {
	if c.slow && !run.all {
		t.Skipf("%s is not set", recordVariable)
	}
	d := &disturbance{T: t, namespace: namespace}
	if c.full {
		d.namespace = fullNamespace
	}
	job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: d.namespace, Name: "case-" + c.name}, Spec: c.spec}
	if job.Spec.Timeouts == nil {
		job.Spec.Timeouts = &v1alpha1.Timeouts{}
	}
	job.Spec.Timeouts.Abort = &metav1.Duration{Duration: 2 * time.Second}
	d.must(kubernetes.Create(t.Context(), job))
	t.Cleanup(func() { d.must(kubernetes.Delete(context.Background(), job)) })
	d.build = submit(t, run.zuul, zuulclient.Request{Job: job.Name, Node: c.node})
	if c.disturb != nil {
		c.disturb(d)
	}
	state := d.end()
	if state.Outcome != c.outcome || state.Result != c.result || len(state.Violations) > 0 || state.Starts != 1 {
		t.Errorf("to Zuul it is %q with result %q, %d starts and violations %v; want %q with %q, one and none",
			state.Outcome, state.Result, state.Starts, state.Violations, c.outcome, c.result)
	}
	build := d.zuulBuild()
	if build = found(t, build, kubernetes.Get(t.Context(), d.key(), build)); build == nil {
		build = d.zuulBuild() // it was deleted
	}
	status := &build.Status
	if status.Reason != c.reason || !strings.Contains(status.Message, c.says) || len(status.LostPods) != c.lostPods {
		t.Errorf("the build says %s: %q, with %d Pods lost before; want %s: %q, %d", status.Reason, status.Message, len(status.LostPods), c.reason, c.says, c.lostPods)
	}
	if t.Failed() {
		run.recorder.tell(t, build.Name)
	}
	node := &corev1.Node{}
	d.must(kubernetes.Get(t.Context(), client.ObjectKey{Name: "node-1"}, node))
	return recorded.Case{
		Name: c.name, What: c.what, Kubernetes: node.Status.NodeInfo.KubeletVersion, Timeouts: *job.Spec.Timeouts,
		Told: state.Result, Outcome: string(state.Outcome), Packet: state.Packets[len(state.Packets)-1].Type.String(),
		Phase: status.Phase, Reason: status.Reason, Message: status.Message, LostPods: len(status.LostPods), Pods: run.recorder.histories(t, build),
	}
}

// end waits for the end of the build.
func (d *disturbance) end() zuulclient.State {
	d.Helper()
	ctx, cancel := context.WithTimeout(d.Context(), patient)
	defer cancel()
	state, err := d.build.Wait(ctx)
	if err != nil {
		d.Fatalf("the build did not end: %v; state %+v; Pod %+v", err, state, d.pod())
	}
	return state
}
