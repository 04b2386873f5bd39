package controllers

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func TestWithPolicy(t *testing.T) {
	job := func(reason string, policy v1alpha1.ReasonPolicy) *v1alpha1.ZuulJob {
		return &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{OnReason: map[string]v1alpha1.ReasonPolicy{reason: policy}}}
	}
	const retry, fail = v1alpha1.PolicyRetry, v1alpha1.PolicyFail
	asFailed := &verdict{v1alpha1.PhaseFailed, "FAILURE", "NodeLost", "100%"}
	asLost := &verdict{v1alpha1.PhaseLost, "", "ImagePullFailed", "m"}
	cases := []struct {
		name  string
		given *verdict
		job   *v1alpha1.ZuulJob
		want  *verdict // nil: as it was
	}{
		{"no job", lost(ReasonNodeLost, "m"), nil, nil},
		{"nothing said", lost(ReasonNodeLost, "m"), &v1alpha1.ZuulJob{}, nil},
		{"lost, to fail", lost(ReasonNodeLost, "100%%"), job(ReasonNodeLost, fail), asFailed},
		{"lost, to be retried", lost(ReasonNodeLost, "m"), job(ReasonNodeLost, retry), nil},
		{"lost for another reason", lost(ReasonPodDeleted, "m"), job(ReasonNodeLost, fail), nil},
		{"failed, to be retried", failed(ReasonImagePullFailed, "m"), job(ReasonImagePullFailed, retry), asLost},
		{"failed, to fail", failed(ReasonImagePullFailed, "m"), job(ReasonImagePullFailed, fail), nil},
		{"what no job may decide, though an old object has it", failed(ReasonExitCode, "m"), job(ReasonExitCode, retry), nil},
		{"abandoned", abortVerdict(&v1alpha1.ZuulBuildSpec{AbortReason: v1alpha1.AbortAbandoned}), job(ReasonAbandoned, fail), nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			want := c.want
			if want == nil {
				want = c.given
			}
			if diff := cmp.Diff(want, withPolicy(c.given, c.job), cmp.AllowUnexported(verdict{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestPolicyMeetsTheRetryLimit: what the job has retried counts as any other loss, and what it has failed does not.
func TestPolicyMeetsTheRetryLimit(t *testing.T) {
	s := &scope{build: zuulBuild("job"), job: &v1alpha1.ZuulJob{}, now: created}
	s.job.Spec.OnReason = map[string]v1alpha1.ReasonPolicy{ReasonInitFailed: v1alpha1.PolicyRetry, ReasonNodeLost: v1alpha1.PolicyFail}
	s.build.Status.Attempts = defaultMaxAttempts
	s.end(failed(ReasonInitFailed, "m"))
	if got := s.build.Status; got.Result != ResultRetryLimit || got.Reason != ReasonRetryLimit {
		t.Errorf("retried for ever: %+v", got)
	}
	s.build.Status = v1alpha1.ZuulBuildStatus{Attempts: defaultMaxAttempts}
	s.end(lost(ReasonNodeLost, "m"))
	if got := s.build.Status; got.Result != ResultFailure || got.Reason != ReasonNodeLost {
		t.Errorf("failed by policy: %+v", got)
	}
}

// TestPoliciesAreTaken: the API server knows the same reasons as the code and as the documentation.
func TestPoliciesAreTaken(t *testing.T) {
	h := newHarness(t)
	var reasons []string
	for reason, policy := range defaultPolicies {
		h.job("all-"+string(regexp.MustCompile(`[^a-z]`).ReplaceAll([]byte(reason), nil)), func(spec *v1alpha1.ZuulJobSpec) {
			spec.OnReason = map[string]v1alpha1.ReasonPolicy{reason: policy}
		})
		reasons = append(reasons, "| "+reason+" | "+string(policy)+" |")
	}
	for _, refused := range []map[string]v1alpha1.ReasonPolicy{{ReasonExitCode: v1alpha1.PolicyRetry}, {ReasonAbandoned: v1alpha1.PolicyFail}, {ReasonNodeLost: "ignore"}} {
		job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Name: "refused", Namespace: h.namespace}, Spec: v1alpha1.ZuulJobSpec{Image: "x", Script: "x", OnReason: refused}}
		if err := h.api.Create(t.Context(), job); !apierrors.IsInvalid(err) {
			t.Errorf("%v: %v", refused, err)
		}
	}
	page, err := os.ReadFile("../docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := regexp.MustCompile(`(?m)^\| \w+ \| (retry|fail) \|`).FindAllString(string(page), -1)
	slices.Sort(reasons)
	slices.Sort(documented)
	if diff := cmp.Diff(reasons, documented); diff != "" {
		t.Errorf("docs/reasons.md (-code +page):\n%s", diff)
	}
}
