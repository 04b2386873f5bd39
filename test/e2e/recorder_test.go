//go:build linux

package e2e

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	ctrlcache "sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/test/recorded"
)

// recorder notes what the API server shows of Pods, and when they got their verdict.
type recorder struct {
	mu      sync.Mutex
	pods    map[string][]version   // by the name of the build, which all its Pods have
	decided map[types.UID]revision // by the Pod that was lost, or by the build for its last Pod
}

// revision is when something was seen, and when it was written: resource versions of one API server count its writes, so what was seen of the Pod and
// of its build by two watches can be put in order.
type revision struct {
	at     time.Time
	number uint64
}

// version is a Pod as it was seen; gone if it was seen to be no more.
type version struct {
	revision

	pod  *corev1.Pod
	gone bool
}

// startRecorder records until the test ends.
func startRecorder(t *testing.T) *recorder {
	t.Helper()
	config, err := cluster.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	watched, err := ctrlcache.New(config, ctrlcache.Options{Scheme: kubernetes.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{pods: map[string][]version{}, decided: map[types.UID]revision{}}
	ctx, cancel := context.WithCancel(context.Background())
	for _, object := range []client.Object{&corev1.Pod{}, &v1alpha1.ZuulBuild{}} {
		informer, err := watched.GetInformer(ctx, object, ctrlcache.BlockUntilSynced(false))
		if err != nil {
			t.Fatal(err)
		}
		_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(object any) { r.see(object, false) },
			UpdateFunc: func(_, object any) { r.see(object, false) },
			DeleteFunc: func(object any) { r.see(object, true) },
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var running sync.WaitGroup
	running.Go(func() { _ = watched.Start(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	if !watched.WaitForCacheSync(ctx) {
		t.Fatal("the recorder sees nothing")
	}
	return r
}

func (r *recorder) see(object any, gone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch o := object.(type) {
	case *corev1.Pod:
		if name := o.Labels[v1alpha1.LabelBuild]; name != "" {
			r.pods[name] = append(r.pods[name], version{newRevision(o), o, gone})
		}
	case *v1alpha1.ZuulBuild:
		for _, lost := range o.Status.LostPods {
			r.decide(lost.UID, newRevision(o))
		}
		if o.Complete() {
			r.decide(o.UID, newRevision(o))
		}
	}
}

func (r *recorder) decide(uid types.UID, now revision) {
	if _, known := r.decided[uid]; !known {
		r.decided[uid] = now
	}
}

func newRevision(object client.Object) revision {
	number, err := strconv.ParseUint(object.GetResourceVersion(), 10, 64)
	if err != nil {
		panic(err)
	}
	return revision{time.Now(), number}
}

// tell logs how the Pods of a build were seen to change.
func (r *recorder) tell(t *testing.T, name string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.pods[name] {
		text, _ := yaml.Marshal(v.pod.Status)
		t.Logf("at %s, deleted %v, gone %v:\n%s", v.at.Format(time.RFC3339Nano), v.pod.DeletionTimestamp, v.gone, text)
	}
}

// histories are the Pods of a build that is there and ended by what became of them, each as it was when the verdict came, and twice before.
func (r *recorder) histories(t *testing.T, build *v1alpha1.ZuulBuild) []recorded.History {
	t.Helper()
	if build.UID == "" || build.Status.Reason == "Aborted" {
		return nil
	}
	eventually(t, "the recorder has seen the verdict", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return !r.decided[build.UID].at.IsZero()
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	var histories []recorded.History
	add := func(pod, decided types.UID, verdict recorded.Verdict) {
		until := r.decided[decided]
		versions := slices.DeleteFunc(slices.Clone(r.pods[build.Name]), func(v version) bool { return v.pod.UID != pod || v.number >= until.number })
		const most = 3
		versions = versions[max(0, len(versions)-most):]
		if len(versions) == 0 {
			return
		}
		history := recorded.History{Verdict: verdict, Time: metav1.NewMicroTime(until.at)}
		for _, v := range versions {
			moment := recorded.Moment{Time: metav1.NewMicroTime(v.at)}
			if !v.gone {
				moment.Pod = recorded.Trim(v.pod)
			}
			history.Moments = append(history.Moments, moment)
		}
		histories = append(histories, history)
	}
	for _, lost := range build.Status.LostPods {
		add(lost.UID, lost.UID, recorded.Verdict{Phase: v1alpha1.PhaseLost, Reason: lost.Reason, Message: lost.Message})
	}
	status := &build.Status
	if versions := r.pods[build.Name]; len(versions) > 0 {
		add(versions[len(versions)-1].pod.UID, build.UID,
			recorded.Verdict{Phase: status.Phase, Result: status.Result, Reason: status.Reason, Message: status.Message})
	}
	return histories
}
