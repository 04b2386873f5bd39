package controllers

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

// class makes a ZuulNodeClass, and machine a Node, named after the test's namespace since they are in none.
func (h *harness) class(name string, cordon bool) string {
	h.Helper()
	class := &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: name + "-" + h.namespace}, Spec: v1alpha1.ZuulNodeClassSpec{CordonWhenComplete: cordon}}
	if err := h.api.Create(h.Context(), class); err != nil {
		h.Fatal(err)
	}
	return class.Name
}

func (h *harness) machine(name string) string {
	h.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name + "-" + h.namespace}}
	if err := h.api.Create(h.Context(), node); err != nil {
		h.Fatal(err)
	}
	return node.Name
}

func (h *harness) node(name string) *corev1.Node {
	h.Helper()
	node := &corev1.Node{}
	if err := h.api.Get(h.Context(), types.NamespacedName{Name: name}, node); err != nil {
		h.Fatal(err)
	}
	return node
}

func (h *harness) uncordon(name string) {
	h.Helper()
	if err := h.api.Patch(h.Context(), h.node(name), client.RawPatch(types.MergePatchType, []byte(`{"spec":{"unschedulable":null}}`))); err != nil {
		h.Fatal(err)
	}
}

// asking is a build that wants its node used no more.
func asking(class, value string) func(*v1alpha1.ZuulBuildSpec) {
	return func(spec *v1alpha1.ZuulBuildSpec) {
		spec.Number, spec.Node, spec.Parameters = 1, class, map[string]string{"OFFLINE_NODE_WHEN_COMPLETE": value}
	}
}

func TestCordonWhenComplete(t *testing.T) {
	h := newHarness(t)
	cordoning, other := h.class("cordoning", true), h.class("other", false)
	h.job("job")
	h.start()
	end := map[string]func(name string){
		"pass": func(name string) { h.report(name, withPhase(podSucceeded), ended("build", 0, "Completed")) },
		"fail": func(name string) { h.report(name, withPhase(podFailed), ended("build", 1, "Error")) },
		"stop": func(name string) {
			h.stopBuild(name)
			h.awaitPhase(name, v1alpha1.PhaseAborting)
			h.deletePod(name, client.GracePeriodSeconds(0))
		},
		"lose": func(name string) { h.deletePod(name, client.GracePeriodSeconds(0)) },
	}
	cases := []struct {
		name, class, value, end string
		cordoned                bool
	}{
		{"passed", cordoning, "1", "pass", true},
		{"failed", cordoning, "True", "fail", true},
		{"stopped", cordoning, "true", "stop", true},
		{"lost", cordoning, "1", "lose", true},
		{"not-asked", cordoning, "0", "pass", false},
		{"class-does-not", other, "1", "pass", false},
		{"no-class", "", "1", "pass", false},
		{"class-without-object", "nodes-of-that-label", "1", "pass", false},
	}
	for _, c := range cases {
		h.request(c.name, "job", asking(c.class, c.value))
	}
	for _, c := range cases {
		h.awaitPod(c.name)
		h.schedule(c.name, h.machine(c.name))
		h.report(c.name, withPhase(podRunning), runningNow("build"))
		h.awaitPhase(c.name, v1alpha1.PhaseRunning)
		if h.node(c.name + "-" + h.namespace).Spec.Unschedulable {
			t.Errorf("%s: the node was cordoned while the build runs", c.name)
		}
		end[c.end](c.name)
	}
	for _, c := range cases {
		h.eventually(func() string {
			if !h.build(c.name).Complete() {
				return c.name + " is not complete"
			}
			return ""
		})
		node, build := h.node(c.name+"-"+h.namespace), h.build(c.name)
		want := ""
		if c.cordoned {
			want = h.namespace + "/" + c.name + "/" + string(build.UID)
		}
		if got := node.Annotations[v1alpha1.AnnotationCordonedBy]; node.Spec.Unschedulable != c.cordoned || got != want {
			t.Errorf("%s: the node's unschedulable is %t, by %q, want %t, by %q", c.name, node.Spec.Unschedulable, got, c.cordoned, want)
		}
	}
	h.awaitEvent(metav1.NamespaceDefault, "Node", "passed-"+h.namespace, "Cordoned after build "+h.namespace+"/passed of job job")
	h.awaitEvent(h.namespace, "ZuulBuild", "passed", "Node passed-"+h.namespace+" was cordoned")
}

// awaitEvent waits for an event on an object.
func (h *harness) awaitEvent(namespace, kind, name, says string) {
	h.Helper()
	h.eventually(func() string {
		list := &eventsv1.EventList{}
		if err := h.api.List(h.Context(), list, client.InNamespace(namespace)); err != nil {
			h.Fatal(err)
		}
		for _, event := range list.Items {
			if event.Regarding.Kind == kind && event.Regarding.Name == name && strings.Contains(event.Note, says) {
				return ""
			}
		}
		return "no event on " + kind + " " + name + " says " + says
	})
}

// TestCordonOncePerBuild: a round that is repeated, because the verdict could not be written or was not yet seen, leaves a node alone that a person has
// uncordoned since. Another build does cordon it.
func TestCordonOncePerBuild(t *testing.T) {
	h := newHarness(t)
	class, machine := h.class("cordoning", true), h.machine("node")
	r := h.reconciler(h.api)
	build := func(name string) *v1alpha1.ZuulBuild {
		h.request(name, "job", asking(class, "1"))
		build := h.build(name)
		build.Status.StartTime, build.Status.NodeName = new(metav1.Now()), machine
		return build
	}
	cordon := func(build *v1alpha1.ZuulBuild, want bool) {
		t.Helper()
		if err := r.cordon(t.Context(), build); err != nil {
			t.Fatal(err)
		}
		if got := h.node(machine).Spec.Unschedulable; got != want {
			t.Errorf("after build %s the node's unschedulable is %t", build.Name, got)
		}
	}
	first, second := build("first"), build("second")
	cordon(first, true)
	cordon(first, true)
	h.uncordon(machine)
	cordon(first, false)
	cordon(second, true)
}

func TestCordonDoesNotHoldTheVerdictUp(t *testing.T) {
	h := newHarness(t)
	class, machine := h.class("cordoning", true), h.machine("node")
	h.request("b", "job", asking(class, "1"))
	build := h.build("b")
	build.Status.StartTime, build.Status.NodeName = new(metav1.Now()), machine
	nodes := schema.GroupResource{Resource: "nodes"}
	cases := map[string]struct {
		answer error
		event  string
		again  bool
	}{
		"not allowed": {apierrors.NewForbidden(nodes, machine, errors.New("no")), "Node " + machine + " should be cordoned and is not", false},
		"gone":        {apierrors.NewNotFound(nodes, machine), "", false},
		"for now":     {apierrors.NewServiceUnavailable("busy"), "", true},
	}
	for name, c := range cases {
		for request, answers := range map[string]interceptor.Funcs{
			"read": {Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
				return c.answer
			}},
			"written": {Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
				return c.answer
			}},
		} {
			t.Run(name+" when the node is "+request, func(t *testing.T) {
				api, err := client.NewWithWatch(apiserver.Config(t), client.Options{Scheme: testScheme(t)})
				if err != nil {
					t.Fatal(err)
				}
				r := h.reconciler(interceptor.NewClient(api, answers))
				r.Live = r.Client
				if err := r.cordon(t.Context(), build); (err != nil) != c.again {
					t.Errorf("error %v", err)
				}
				said := ""
				select {
				case said = <-r.Recorder.(*events.FakeRecorder).Events:
				default:
				}
				if c.event == "" && said != "" || !strings.Contains(said, c.event) {
					t.Errorf("event %q", said)
				}
			})
		}
	}
	build.Status.NodeName = "no-such-node"
	if err := h.reconciler(h.api).cordon(t.Context(), build); err != nil {
		t.Errorf("a node that is gone: %v", err)
	}
}

// TestCordonForbiddenForMoments: an API server that has just started may forbid what it will allow. The verdict waits for that, for a limited time.
func TestCordonForbiddenForMoments(t *testing.T) {
	h := newHarness(t)
	class := h.class("cordoning", true)
	h.request("b", "job", asking(class, "1"))
	build := h.build("b")
	build.Status.StartTime = new(metav1.Now())
	begun := time.Now()
	for name, comes := range map[string]bool{"comes": true, "never-comes": false} {
		machine := h.machine(name)
		build.Status.NodeName = machine
		api, err := client.NewWithWatch(apiserver.Config(t), client.Options{Scheme: testScheme(t)})
		if err != nil {
			t.Fatal(err)
		}
		forbids := true
		r := h.reconciler(interceptor.NewClient(api, interceptor.Funcs{
			Patch: func(ctx context.Context, api client.WithWatch, object client.Object, patch client.Patch, options ...client.PatchOption) error {
				if forbids {
					return apierrors.NewForbidden(corev1.Resource("nodes"), machine,
						errors.New(`User "zuulbuild" cannot patch resource "nodes" in API group "" at the cluster scope`))
				}
				return api.Patch(ctx, object, patch, options...)
			},
		}))
		try := func(ahead time.Duration, again bool) {
			t.Helper()
			r.Clock = clocktesting.NewFakeClock(begun.Add(ahead))
			if err := r.cordon(t.Context(), build); (err != nil) != again {
				t.Errorf("a right that %s, after %s: error %v", name, ahead, err)
			}
		}
		try(0, true)
		try(cordonGrace/2, true)
		forbids = !comes
		try(cordonGrace, false)
		if got := h.node(machine).Spec.Unschedulable; got != comes {
			t.Errorf("a right that %s: the node's unschedulable is %t", name, got)
		}
		if said := <-r.Recorder.(*events.FakeRecorder).Events; strings.Contains(said, eventCordonFailed) == comes {
			t.Errorf("a right that %s: event %q", name, said)
		}
		if _, waits := r.cordonWaits.Load(client.ObjectKeyFromObject(build)); waits {
			t.Errorf("a right that %s: that it was waited for is not forgotten", name)
		}
	}
}
