//go:build linux

package e2e

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	ctrlcache "sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/test/recorded"
)

// recorder notes what the API server shows of Pods, and when builds got their verdict.
type recorder struct {
	mu       sync.Mutex
	pods     map[string][]version // by the name of the build, which all its Pods have
	complete map[string]time.Time
}

// version is a Pod as it was seen.
type version struct {
	at  time.Time
	pod *corev1.Pod
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
	r := &recorder{pods: map[string][]version{}, complete: map[string]time.Time{}}
	ctx, cancel := context.WithCancel(context.Background())
	for _, object := range []client.Object{&corev1.Pod{}, &v1alpha1.ZuulBuild{}} {
		informer, err := watched.GetInformer(ctx, object, ctrlcache.BlockUntilSynced(false))
		if err != nil {
			t.Fatal(err)
		}
		_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: r.see, UpdateFunc: func(_, object any) { r.see(object) }, DeleteFunc: r.see,
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

func (r *recorder) see(object any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch o := object.(type) {
	case *corev1.Pod:
		if name := o.Labels[v1alpha1.LabelBuild]; name != "" {
			r.pods[name] = append(r.pods[name], version{time.Now(), o})
		}
	case *v1alpha1.ZuulBuild:
		if _, known := r.complete[o.Name]; !known && o.Complete() {
			r.complete[o.Name] = time.Now()
		}
	}
}

// tell logs how the Pods of a build were seen to change.
func (r *recorder) tell(t *testing.T, name string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.pods[name] {
		text, _ := yaml.Marshal(v.pod.Status)
		t.Logf("at %s, deleted %v:\n%s", v.at.Format(time.RFC3339Nano), v.pod.DeletionTimestamp, text)
	}
}

// soon is how long after a change of a Pod a verdict is one on that change, rather than one of a clock.
const soon = 900 * time.Millisecond

// moments are the Pods of a build that ended by what became of them: as each was when the verdict came, and as it was before there was one.
func (r *recorder) moments(build *v1alpha1.ZuulBuild) []recorded.Moment {
	r.mu.Lock()
	defer r.mu.Unlock()
	var moments []recorded.Moment
	add := func(pod types.UID, until time.Time, verdict *recorded.Verdict) {
		versions := slices.Clone(r.pods[build.Name])
		versions = slices.DeleteFunc(versions, func(v version) bool { return v.pod.UID != pod || v.at.After(until) })
		if len(versions) == 0 {
			return
		}
		last := versions[len(versions)-1]
		switch {
		case until.Sub(last.at) > soon:
			moments = append(moments, recorded.At(last.at, last.pod, nil), recorded.At(until, last.pod, verdict))
			return
		case len(versions) > 1:
			before := versions[len(versions)-2]
			moments = append(moments, recorded.At(before.at, before.pod, nil))
		}
		moments = append(moments, recorded.At(last.at, last.pod, verdict))
	}
	for _, lost := range build.Status.LostPods {
		until := time.Time{}
		for _, v := range r.pods[build.Name] {
			if v.pod.UID == lost.UID {
				until = v.at
			}
		}
		add(lost.UID, until, &recorded.Verdict{Phase: v1alpha1.PhaseLost, Reason: lost.Reason, Message: lost.Message})
	}
	status := &build.Status
	if versions := r.pods[build.Name]; len(versions) > 0 && status.Reason != "Aborted" {
		add(versions[len(versions)-1].pod.UID, r.complete[build.Name],
			&recorded.Verdict{Phase: status.Phase, Result: status.Result, Reason: status.Reason, Message: status.Message})
	}
	return moments
}
