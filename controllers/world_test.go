package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
)

// world is a cluster with one build, in memory, on a clock of its own. It keeps every version of the build and of its Pod: the reconciler's cache shows
// of each any version that is not older than one it has shown. It does what the API server does that matters here: versions, preconditions, graceful
// deletion, and that a verdict is given once.
type world struct {
	client.Client // nil: what the reconciler does not use
	now           time.Time
	job           *v1alpha1.ZuulJob
	class         *v1alpha1.ZuulNodeClass
	builds        []*v1alpha1.ZuulBuild // the last is the one there is; nil: none
	pods          []*corev1.Pod         // likewise
	seenBuild     int                   // the version the cache shows
	seenPod       int
	operator      *ZuulBuildReconciler

	writesUntilFailure int // the write that fails, counted from 1; 0 for none
	failAfterwards     bool
	injected           bool // a write has failed in this round

	proxy    bool // somebody injects a container that never ends
	nodeDead bool
	forced   int // deletions without grace by the operator
	made     int // Pods
	vanished int // Pods that went without the build's status saying how
	truths   map[types.UID]*truth
	verdict  *v1alpha1.ZuulBuildStatus
	// startedByVerdict: when the verdict was given, the Pod had started.
	startedByVerdict bool
	wrong            []string // what must never happen and did
}

// truth is what really became of a Pod.
type truth struct {
	started, disturbed bool // disturbed: by anything but the job and its clock, before the Pod had ended
	exit               *int32
}

var errInjected = errors.New("the API server does not answer")

func newWorld(job *v1alpha1.ZuulJob) *world {
	w := &world{now: created, job: job, truths: map[types.UID]*truth{}}
	build := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{Namespace: "builds", Name: "b", UID: "b", ResourceVersion: "1", Generation: 1, CreationTimestamp: metav1.NewTime(w.now)},
		Spec:       v1alpha1.ZuulBuildSpec{Job: "job", Number: 1},
	}
	w.builds, w.pods = []*v1alpha1.ZuulBuild{build}, []*corev1.Pod{nil}
	w.restart()
	return w
}

// restart begins anew with nothing in memory and a fresh cache.
func (w *world) restart() {
	w.operator = &ZuulBuildReconciler{
		Client: w, Live: live{w: w}, Recorder: &events.FakeRecorder{}, Clock: w, BuildURL: func(*v1alpha1.ZuulBuild) string { return "url" },
		Builds: capacity.NewBuilds(), Pods: &PodMemory{}, MaxBuilds: capacity.NewCeiling(10), // there is but one
	}
	w.catchUp()
}

func (w *world) catchUp() { w.seenBuild, w.seenPod = len(w.builds)-1, len(w.pods)-1 }

func (w *world) Now() time.Time                  { return w.now }
func (w *world) Since(t time.Time) time.Duration { return w.now.Sub(t) }

func (w *world) reconcile() (ctrl.Result, error) {
	w.injected = false
	return w.operator.Reconcile(context.Background(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "builds", Name: "b"}})
}

func (w *world) build() *v1alpha1.ZuulBuild { return w.builds[len(w.builds)-1] }
func (w *world) pod() *corev1.Pod           { return w.pods[len(w.pods)-1] }

// change makes a new version of the build.
func (w *world) change(change func(*v1alpha1.ZuulBuild)) {
	build := w.build().DeepCopy()
	change(build)
	build.ResourceVersion = strconv.Itoa(len(w.builds) + 1)
	w.builds = append(w.builds, build)
	if w.verdict == nil && build.Complete() {
		w.verdict = build.Status.DeepCopy()
		w.startedByVerdict = w.pod() != nil && w.truths[w.pod().UID].started
	}
}

// changePod makes a new version of the Pod.
func (w *world) changePod(options ...podOption) {
	pod := w.pod().DeepCopy()
	for _, option := range options {
		option(pod)
	}
	w.pods = append(w.pods, pod)
}

func (w *world) removePod() {
	known := w.build() == nil || w.build().Complete()
	if !known {
		for _, l := range w.build().Status.LostPods {
			known = known || l.UID == w.pod().UID
		}
	}
	if !known {
		w.vanished++
	}
	w.disturb()
	w.pods = append(w.pods, nil)
}

// disturb notes that something happens to the Pod that is not its job's doing.
func (w *world) disturb() {
	if !podTerminal(w.pod()) {
		w.truths[w.pod().UID].disturbed = true
	}
}

// askToGo is a deletion with grace.
func (w *world) askToGo() {
	pod := w.pod()
	switch {
	case pod.DeletionTimestamp != nil:
	case pod.Spec.NodeName == "" || podTerminal(pod):
		w.removePod()
	default:
		w.disturb()
		w.changePod(func(pod *corev1.Pod) {
			pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = ptr.To(metav1.NewTime(w.now.Add(30*time.Second))), ptr.To[int64](30)
		})
	}
}

// write counts the writes of a round; apply happens unless this is the one that fails before it.
func (w *world) write(apply func() error) error {
	w.writesUntilFailure--
	if w.writesUntilFailure != 0 {
		return apply()
	}
	w.injected = true
	if w.failAfterwards {
		_ = apply()
	}
	return errInjected
}

func notFound(resource string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: resource}, "b")
}

func (w *world) Get(_ context.Context, _ client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	return get(object, w.builds[w.seenBuild], w.pods[w.seenPod])
}

func get(object client.Object, build *v1alpha1.ZuulBuild, pod *corev1.Pod) error {
	switch object := object.(type) {
	case *v1alpha1.ZuulBuild:
		if build != nil {
			build.DeepCopyInto(object)
			return nil
		}
	case *corev1.Pod:
		if pod != nil {
			pod.DeepCopyInto(object)
			return nil
		}
	}
	return notFound(fmt.Sprintf("%T", object))
}

func (w *world) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	switch list := list.(type) {
	case *v1alpha1.ZuulJobList:
		list.Items = []v1alpha1.ZuulJob{*w.job.DeepCopy()}
	case *v1alpha1.ZuulNodeClassList:
		if w.class != nil {
			list.Items = []v1alpha1.ZuulNodeClass{*w.class.DeepCopy()}
		}
	}
	return nil
}

func (w *world) Create(_ context.Context, object client.Object, _ ...client.CreateOption) error {
	return w.write(func() error {
		pod := object.DeepCopyObject().(*corev1.Pod)
		if w.pod() != nil {
			return apierrors.NewAlreadyExists(schema.GroupResource{Resource: "pods"}, "b")
		}
		if w.verdict != nil {
			w.wrong = append(w.wrong, "a Pod was made after the verdict")
		}
		w.made++
		pod.UID, pod.CreationTimestamp, pod.Status.Phase = types.UID(fmt.Sprintf("pod-%d", w.made)), metav1.NewTime(w.now), corev1.PodPending
		if w.proxy {
			injected("proxy")(pod)
		}
		w.truths[pod.UID] = &truth{}
		w.pods = append(w.pods, pod)
		object.SetUID(pod.UID)
		return nil
	})
}

func (w *world) Delete(_ context.Context, object client.Object, options ...client.DeleteOption) error {
	return w.write(func() error {
		chosen := client.DeleteOptions{}
		chosen.ApplyOptions(options)
		if _, ok := object.(*v1alpha1.ZuulBuild); ok {
			w.builds = append(w.builds, nil)
			return nil
		}
		switch pod := w.pod(); {
		case pod == nil:
			return notFound("pods")
		case chosen.Preconditions != nil && *chosen.Preconditions.UID != pod.UID:
			return apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, "b", errors.New("the UID differs"))
		case ptr.Deref(chosen.GracePeriodSeconds, 30) == 0:
			w.forced++
			if pod.DeletionTimestamp == nil || w.now.Sub(pod.DeletionTimestamp.Time) < unreachableGrace {
				w.wrong = append(w.wrong, "a Pod was deleted by force although its node may answer")
			}
			w.removePod()
		default:
			w.askToGo()
		}
		return nil
	})
}

func (w *world) Patch(_ context.Context, object client.Object, patch client.Patch, _ ...client.PatchOption) error {
	return w.write(func() error {
		data, err := patch.Data(object)
		if err != nil {
			return err
		}
		if w.pod() == nil {
			return notFound("pods")
		}
		patched := &corev1.Pod{}
		if err := mergeInto(w.pod(), data, patched); err != nil {
			return err
		}
		w.pods = append(w.pods, patched)
		return nil
	})
}

func (w *world) Status() client.SubResourceWriter { return statusWriter{w: w} }

type statusWriter struct {
	client.SubResourceWriter
	w *world
}

func (s statusWriter) Patch(_ context.Context, object client.Object, patch client.Patch, _ ...client.SubResourcePatchOption) error {
	w := s.w
	return w.write(func() error {
		data, err := patch.Data(object)
		if err != nil {
			return err
		}
		old := w.build()
		if old == nil {
			return notFound("zuulbuilds")
		}
		asked, patched := struct{ Metadata metav1.ObjectMeta }{}, &v1alpha1.ZuulBuild{}
		if err := errors.Join(json.Unmarshal(data, &asked), mergeInto(old, data, patched)); err != nil {
			return err
		}
		switch version := asked.Metadata.ResourceVersion; {
		case version != "" && version != old.ResourceVersion:
			return apierrors.NewConflict(schema.GroupResource{Resource: "zuulbuilds"}, "b", errors.New("the version differs"))
		case old.Complete() && (patched.Status.Phase != old.Status.Phase || patched.Status.Result != old.Status.Result):
			return apierrors.NewInvalid(schema.GroupKind{Kind: "ZuulBuild"}, "b", nil)
		}
		w.change(func(build *v1alpha1.ZuulBuild) { build.Status = patched.Status })
		return nil
	})
}

// live reads what there is.
type live struct {
	client.Reader
	w *world
}

func (l live) Get(_ context.Context, _ client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	return get(object, l.w.build(), l.w.pod())
}

// mergeInto applies a JSON merge patch (RFC 7386) to an object and reads the outcome into another.
func mergeInto(object any, patch []byte, into any) error {
	before, err := json.Marshal(object)
	if err != nil {
		return err
	}
	var document, change any
	if err := errors.Join(json.Unmarshal(before, &document), json.Unmarshal(patch, &change)); err != nil {
		return err
	}
	after, err := json.Marshal(merge(document, change))
	if err != nil {
		return err
	}
	return json.Unmarshal(after, into)
}

func merge(document, patch any) any {
	fields, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	merged, ok := document.(map[string]any)
	if !ok {
		merged = map[string]any{}
	}
	for name, value := range fields {
		if value == nil {
			delete(merged, name)
		} else {
			merged[name] = merge(merged[name], value)
		}
	}
	return merged
}
