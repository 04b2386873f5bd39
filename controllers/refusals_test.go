package controllers

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

// What an API server says when it does not let a Pod be.
const (
	saysNoRoom     = "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
	saysNotCounted = "status unknown for quota: q, resources: pods"
	saysNoRight    = `User "system:serviceaccount:zuulbuild-system:zuulbuild" cannot create resource "pods" in API group "" in the namespace "ci"`
	saysNotReady   = "not yet ready to handle request"
	saysNoAccount  = `error looking up service account ci/missing: serviceaccount "missing" not found`
	saysPolicy     = `violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false`
)

func forbiddenPod(why string) *apierrors.StatusError {
	return apierrors.NewForbidden(corev1.Resource("pods"), "b", errors.New(why))
}

func TestRefusalOf(t *testing.T) {
	for says, want := range map[string]refusal{
		saysNoRoom:     refusedByQuota,
		saysNotCounted: refusedByQuota,
		saysNoRight:    refusedToOperator,
		saysNotReady:   refusedToOperator,
		`cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: User "zuulbuild" cannot update resource ` +
			`"zuulbuilds/finalizers" in API group "zuulbuild.dev" in the namespace "ci", `: refusedToOperator,
		saysNoAccount:                            refusedServiceAccount,
		saysPolicy:                               refusedPod,
		"failed quota: q: must specify cpu":      refusedPod,
		"no PriorityClass with name p was found": refusedPod,
		"a policy does not like it":              refusedPod,
	} {
		if got := refusalOf(forbiddenPod(says)); got != want {
			t.Errorf("%s: %d, want %d", says, got, want)
		}
	}
}

// TestRefusalOfAPIServer: those words are the API server's own.
func TestRefusalOfAPIServer(t *testing.T) {
	h := newHarness(t)
	access := rest.CopyConfig(apiserver.Config(t))
	access.Impersonate.UserName = "nobody"
	nobody, err := client.New(access, client.Options{Scheme: testScheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	named := metav1.ObjectMeta{Namespace: h.namespace, Name: "b"}
	for name, object := range map[string]client.Object{"Pod": &corev1.Pod{ObjectMeta: named}, "ConfigMap": &corev1.ConfigMap{ObjectMeta: named}} {
		if err := nobody.Create(t.Context(), object); !apierrors.IsForbidden(err) || refusalOf(err) != refusedToOperator {
			t.Errorf("%s without a right: %v", name, err)
		}
	}
}

// TestForbidden: what passes by itself is waited for, and not for ever; the rest is final at once.
func TestForbidden(t *testing.T) {
	const limit = 5 * time.Minute
	job := &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{Timeouts: &v1alpha1.Timeouts{Unscheduled: duration(limit)}}}
	type tries map[time.Duration]time.Duration // by the time since the first: when the next is due
	slowly := tries{0: quotaRetry, 15 * time.Second: quotaRetry, limit - 5*time.Second: 5 * time.Second}
	soon := tries{0: time.Second, time.Second: time.Second, 2 * time.Second: 2 * time.Second, 8 * time.Second: 8 * time.Second, time.Minute: quotaRetry,
		limit - 5*time.Second: 5 * time.Second}
	for says, c := range map[string]struct {
		waits  tries
		reason string // of waiting, and in the end
		limit  time.Duration
		ends   v1alpha1.BuildPhase
	}{
		saysNoRoom:     {slowly, ReasonQuotaExceeded, limit, v1alpha1.PhaseLost},
		saysNotCounted: {slowly, ReasonQuotaExceeded, limit, v1alpha1.PhaseLost},
		saysNoRight:    {soon, ReasonOperatorForbidden, limit, v1alpha1.PhaseLost},
		saysNotReady:   {soon, ReasonOperatorForbidden, limit, v1alpha1.PhaseLost},
		saysNoAccount:  {tries{0: time.Second, 8 * time.Second: 8 * time.Second, 50 * time.Second: 10 * time.Second}, ReasonForbidden, accountGrace, v1alpha1.PhaseFailed},
		saysPolicy:     {nil, ReasonForbidden, 0, v1alpha1.PhaseFailed},
	} {
		refused := func(s *scope, waited time.Duration) *v1alpha1.ZuulBuildStatus {
			t.Helper()
			s.now, s.refused = created.Add(waited), false
			if done, err := s.notCreated("Pod", forbiddenPod(says)); !done || err != nil || !s.refused {
				t.Errorf("%s: done %t, the slot is given back %t, error %v", says, done, s.refused, err)
			}
			return &s.build.Status
		}
		begun := &scope{build: zuulBuild("job"), job: job}
		if c.waits != nil {
			refused(begun, 0)
		}
		for waited, next := range c.waits {
			s := &scope{build: begun.build.DeepCopy(), job: job}
			status := refused(s, waited)
			if status.Phase != v1alpha1.PhaseStarting || status.Reason != c.reason || !strings.Contains(status.Message, says) || s.after != next {
				t.Errorf("%s: after %s %s, %s: %q, again in %s, want %s", says, waited, status.Phase, status.Reason, status.Message, s.after, next)
			}
			if diff := cmp.Diff(begun.build.Status, *status); diff != "" {
				t.Errorf("%s: waiting on is worth no write (-before +after):\n%s", says, diff)
			}
		}
		status := refused(begun, c.limit)
		result := map[v1alpha1.BuildPhase]string{v1alpha1.PhaseFailed: ResultFailure}[c.ends]
		if status.Phase != c.ends || status.Result != result || status.Reason != c.reason || !strings.Contains(status.Message, says) {
			t.Errorf("%s: in the end %s %q, %s: %q", says, status.Phase, status.Result, status.Reason, status.Message)
		}
	}
}

func TestServerFault(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"a webhook that does not answer": {errNoWebhook, true},
		"not available":                  {apierrors.NewServiceUnavailable("not now"), true},
		"too late":                       {apierrors.NewTimeoutError("etcd", 1), true},
		"too many requests":              {apierrors.NewTooManyRequests("later", 1), true},
		"wrapped":                        {fmt.Errorf("create: %w", errNoWebhook), true},
		"larger than etcd stores":        {apierrors.NewInternalError(errors.New("etcdserver: request is too large")), false},
		"forbidden":                      {apierrors.NewForbidden(pods, "b", errors.New("no")), false},
		"invalid":                        {apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "b", nil), false},
		"no answer":                      {errors.New("connection refused"), false},
	} {
		if got := serverFault(c.err); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

var (
	errNoWebhook = apierrors.NewInternalError(errors.New(`failed calling webhook "w.example.org": connection refused`))
	errNoPolicy  = apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "b",
		field.ErrorList{field.Forbidden(nil, "failed to configure binding: paramKind not yet synced to use for admission")})
)

// TestFailedCreate: a fault of the API server is waited for, and no longer than for a node.
func TestFailedCreate(t *testing.T) {
	job := &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{Timeouts: &v1alpha1.Timeouts{Unscheduled: duration(time.Minute)}}}
	for name, c := range map[string]struct {
		err    error
		leaves bool // its slot
	}{
		"a webhook":  {errNoWebhook, true},
		"a policy":   {errNoPolicy, false},
		"a time-out": {apierrors.NewTimeoutError("etcd", 1), false},
	} {
		s := &scope{build: zuulBuild("job"), job: job, now: created}
		if done, err := s.notCreated("Pod", c.err); !done || err != nil || s.refused != c.leaves || s.after != quotaRetry {
			t.Errorf("%s: done %t, error %v, leaves its slot %t, again in %s", name, done, err, s.refused, s.after)
		}
		if status := s.build.Status; status.Phase != v1alpha1.PhaseStarting || status.Reason != ReasonFailedCreate || !strings.Contains(status.Message, c.err.Error()) {
			t.Errorf("%s: %s, %s: %s", name, status.Phase, status.Reason, status.Message)
		}
		s.now = created.Add(time.Minute)
		if done, err := s.notCreated("Pod", c.err); !done || err != nil || s.build.Status.Phase != v1alpha1.PhaseLost || s.build.Status.Reason != ReasonFailedCreate {
			t.Errorf("%s: in the end done %t, error %v, %s, %s", name, done, err, s.build.Status.Phase, s.build.Status.Reason)
		}
	}
}

// TestLongRefusal: the API server quotes what it refuses, and takes no condition of more than 32 KiB.
func TestLongRefusal(t *testing.T) {
	h := newHarness(t)
	h.start()
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) {
		spec.Image, spec.Script = "", ""
		spec.Template = &corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"long": strings.Repeat("ü", 18_000)}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "build", Image: "example.org/image"}}},
		}
	})
	h.request("b", "job", numbered(1))
	message := h.awaitVerdict("b", v1alpha1.PhaseFailed, "FAILURE", "InvalidPod").Status.Message
	if len(message) > maxMessage || !utf8.ValidString(message) || !strings.HasSuffix(message, " …") {
		t.Errorf("message of %d bytes: %q", len(message), message)
	}
}

// TestOneClockForAllRefusals: a build that is refused for one reason after the other waits no longer than for one.
func TestOneClockForAllRefusals(t *testing.T) {
	s := &scope{build: zuulBuild("job"), job: &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{Timeouts: &v1alpha1.Timeouts{Unscheduled: duration(time.Minute)}}}}
	for i, c := range []struct{ says, reason string }{
		{saysNoRight, ReasonOperatorForbidden}, {saysNoRoom, ReasonQuotaExceeded}, {saysNotReady, ReasonOperatorForbidden}, {saysNoRoom, ReasonQuotaExceeded},
	} {
		s.now = created.Add(time.Duration(i) * 20 * time.Second)
		s.forbidden("Pod", forbiddenPod(c.says))
		if s.build.Status.Reason != c.reason || s.build.Complete() != (i == 3) {
			t.Errorf("refusal %d: %s, %s", i, s.build.Status.Phase, s.build.Status.Reason)
		}
	}
}

// TestPodIsMadeWhenItIsLetBe: the build says what it waits for, and nothing is left of that.
func TestPodIsMadeWhenItIsLetBe(t *testing.T) {
	h := newHarness(t)
	h.job("job")
	h.start()
	for says, reason := range map[string]string{saysNoRight: ReasonOperatorForbidden, saysNoAccount: ReasonForbidden} {
		name := strings.ToLower(reason)
		h.forbids.Store(ptr.To(says))
		h.request(name, "job", numbered(1))
		if status := h.awaitPhase(name, v1alpha1.PhaseStarting).Status; status.Reason != reason || !strings.Contains(status.Message, says) {
			t.Errorf("%s: %s", status.Reason, status.Message)
		}
		h.forbids.Store(nil)
		h.run(name)
	}
}

// TestQuotaNotCounted: in a namespace that was just made, the quota controller has yet to say what is used.
func TestQuotaNotCounted(t *testing.T) {
	h := newHarness(t)
	quota := h.quota(1, false)
	h.job("job")
	h.start()
	h.request("b", "job", numbered(1))
	if status := h.awaitPhase("b", v1alpha1.PhaseStarting).Status; status.Reason != ReasonQuotaExceeded || !strings.Contains(status.Message, "status unknown for quota") {
		t.Errorf("%s: %s", status.Reason, status.Message)
	}
	quota.Status.Used = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}
	if err := h.api.Status().Update(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	h.awaitPod("b") // within quotaRetry
}
