package controllers

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// longParameters are two, of which one does not fit into the environment.
func longParameters(spec *v1alpha1.ZuulBuildSpec) {
	spec.Number = 1
	spec.Parameters = map[string]string{"LONG": strings.Repeat("$(SHORT)\n\x01Ä", 20_000), "SHORT": "s"}
}

// files is nil where there is no ConfigMap of the name.
func (h *harness) files(name string) *corev1.ConfigMap {
	h.Helper()
	files := &corev1.ConfigMap{}
	err := h.api.Get(h.Context(), types.NamespacedName{Namespace: h.namespace, Name: name}, files)
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		h.Fatal(err)
	}
	return files
}

// checkArrived looks whether the container of a build sees its long parameters.
func (h *harness) checkArrived(name string) {
	h.Helper()
	pod, files, parameters := h.awaitPod(name), h.files(name), h.build(name).Spec.Parameters
	if files == nil {
		h.Fatal("there is no ConfigMap")
	}
	seen := seenBy(&pod.Spec.Containers[0])
	if _, isSet := seen["LONG"]; isSet || seen["LONG_FILE"] != "/zuulbuild/parameters/LONG" || seen["SHORT"] != parameters["SHORT"] {
		h.Errorf("the container sees %q", slices.Sorted(maps.Keys(seen)))
	}
	if !bytes.Equal(files.BinaryData["LONG"], []byte(parameters["LONG"])) {
		h.Errorf("the file has %d bytes, of %d sent", len(files.BinaryData["LONG"]), len(parameters["LONG"]))
	}
	if !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.ConfigMap != nil && v.ConfigMap.Name == files.Name }) {
		h.Error("the Pod does not mount the ConfigMap")
	}
	if !ownedBy(files, h.build(name)) || !*files.Immutable {
		h.Errorf("the ConfigMap is not the build's for good: %+v", files.ObjectMeta)
	}
}

func TestLongParametersArrive(t *testing.T) {
	h := newHarness(t)
	h.ahead = neverSlow
	_, writes := h.start()
	h.job("job")
	h.request("b", "job", longParameters)
	h.checkArrived("b")
	if got := writes.all(); len(got) != 2 || got[0] != "POST configmaps" || got[1] != "POST pods" {
		t.Errorf("writes: %q", got)
	}
	h.request("short", "job", numbered(2))
	h.awaitPod("short")
	if h.files("short") != nil {
		t.Error("a build without long parameters has a ConfigMap")
	}
}

// TestAsMuchAsTheBridgeTakes: what fits a ZuulBuild fits its Pod and ConfigMap, whatever the bytes are.
func TestAsMuchAsTheBridgeTakes(t *testing.T) {
	h := newHarness(t)
	h.start()
	h.job("job")
	h.job("template", func(spec *v1alpha1.ZuulJobSpec) {
		spec.Image, spec.Script = "", ""
		spec.Template = &corev1.PodTemplateSpec{}
		for _, name := range []string{"a", "b", "c", "d"} {
			spec.Template.Spec.Containers = append(spec.Template.Spec.Containers, corev1.Container{Name: name, Image: "x"})
		}
	})
	large := map[string]map[string]string{"one": {"A": strings.Repeat("x", 1<<20-10)}, "escaped": {"A": strings.Repeat("\x01", 1<<20/6-10)}, "many": {}, "dollars": {}}
	for i := range 16 {
		large["many"]["MANY_"+strings.Repeat("X", i)] = strings.Repeat("x", 65_500)
		large["dollars"]["MANY_"+strings.Repeat("X", i)] = strings.Repeat("$", 65_500)
	}
	jobs := map[string]string{"one": "job", "escaped": "job", "many": "template", "dollars": "template"}
	for name, parameters := range large {
		h.request(name, jobs[name], numbered(1), func(spec *v1alpha1.ZuulBuildSpec) { spec.Parameters = parameters })
	}
	for name := range large {
		h.awaitPod(name)
	}
}

// TestGoesOnBetweenConfigMapAndPod: a build whose operator ended in between takes over what is there.
func TestGoesOnBetweenConfigMapAndPod(t *testing.T) {
	h := newHarness(t)
	quota := h.quota(0, true)
	h.job("job")
	stop, _ := h.start()
	h.request("b", "job", longParameters)
	h.awaitPhase("b", v1alpha1.PhaseStarting)
	stop()
	before := h.files("b")
	if before == nil || h.pod("b") != nil {
		t.Fatal("the ConfigMap was not made before the Pod")
	}
	if err := h.api.Delete(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.checkArrived("b")
	if h.files("b").UID != before.UID {
		t.Error("the ConfigMap was made again")
	}
}

func TestConfigMapsInTheWay(t *testing.T) {
	cases := map[string]struct {
		change   func(files *corev1.ConfigMap) // of what would be the build's own
		replaced bool
	}{
		"of an earlier build of the name": {func(files *corev1.ConfigMap) { files.OwnerReferences[0].UID = "earlier" }, true},
		"with other files":                {func(files *corev1.ConfigMap) { files.BinaryData = map[string][]byte{"OTHER": []byte("x")} }, true},
		"that can change":                 {func(files *corev1.ConfigMap) { files.Immutable = nil }, true},
		"of somebody else":                {func(files *corev1.ConfigMap) { files.Labels, files.OwnerReferences = nil, nil }, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.job("job")
			h.request("b", "job", longParameters)
			_, files, err := buildPod(h.build("b"), scriptJob(), nil, "")
			if err != nil {
				t.Fatal(err)
			}
			c.change(files)
			h.create(files)
			h.start()
			if c.replaced {
				h.checkArrived("b")
				return
			}
			build := h.awaitVerdict("b", v1alpha1.PhaseFailed, "FAILURE", "InvalidPod")
			if !strings.Contains(build.Status.Message, "a ConfigMap named b that does not belong to the build is in the way") {
				t.Errorf("message %q", build.Status.Message)
			}
			if got := h.files("b"); got == nil || got.UID != files.UID {
				t.Error("somebody else's ConfigMap was deleted")
			}
		})
	}
}

// TestConfigMapOfAPodStays: a round that knows nothing of the Pod yet must not take away what the Pod mounts.
func TestConfigMapOfAPodStays(t *testing.T) {
	h := newHarness(t)
	h.job("job")
	h.request("b", "job", longParameters)
	build := h.build("b")
	pod, files, err := buildPod(build, scriptJob(), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	wanted := files.DeepCopy()
	files.BinaryData["OTHER"] = []byte("x")
	h.create(files, pod)
	r := h.reconciler(h.api)
	s := &scope{build: build}
	if done, err := r.ensureFiles(t.Context(), s, wanted); err != nil || !done || s.after == 0 {
		t.Errorf("done %t (%v), again after %s", done, err, s.after)
	}
	if got := h.files("b"); got == nil || got.UID != files.UID {
		t.Error("the ConfigMap was deleted")
	}
	if !r.Pods.knows(build) {
		t.Error("the Pod was not taken over")
	}
}

// reconciler is one without caches, to call the steps of.
func (h *harness) reconciler(api client.Client) *ZuulBuildReconciler {
	return &ZuulBuildReconciler{Pods: &PodMemory{}, Client: api, Live: h.api, Recorder: events.NewFakeRecorder(10), Clock: clock.RealClock{}}
}

// TestTooLarge: what etcd or the API server finds too large is no error that passes.
func TestTooLarge(t *testing.T) {
	h := newHarness(t)
	for _, size := range []int{1_000_000, 1_600_000, 2_500_000, 4_000_000} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "large-", Namespace: h.namespace}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "x", Image: "x", Args: []string{strings.Repeat("x", size)}}},
		}}
		err := h.api.Create(t.Context(), pod)
		if size == 1_000_000 {
			if err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
			continue
		}
		s := &scope{build: newBuild(), now: created}
		if done, again := s.notCreated("Pod", err); !done || again != nil || s.build.Status.Reason != ReasonInvalidPod {
			t.Errorf("%d bytes: the build is %s, error %v", size, s.build.Status.Phase, again)
		}
	}
}
