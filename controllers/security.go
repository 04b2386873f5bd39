package controllers

import (
	"cmp"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// podSecurity knows what each level of Pod Security allows, as the API server does that enforces one in a namespace
// (https://kubernetes.io/docs/concepts/security/pod-security-standards/).
var podSecurity = func() policy.Evaluator {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		panic(err) // of checks that are compiled in, so every test would have seen it
	}
	return evaluator
}()

// forbiddenByClass is the verdict on a build whose Pod asks for more than its node class allows, or than `restricted` where it has none; nil where the Pod
// may be.
func forbiddenByClass(pod *corev1.Pod, class *v1alpha1.ZuulNodeClass) *verdict {
	level, whose := v1alpha1.PodSecurityRestricted, "builds without a node class"
	if class != nil {
		level, whose = cmp.Or(class.Spec.PodSecurity, level), "builds of node class "+class.GearmanName()
	}
	result := policy.AggregateCheckResults(podSecurity.EvaluatePod(
		api.LevelVersion{Level: api.Level(level), Version: api.LatestVersion()}, &pod.ObjectMeta, &pod.Spec))
	if result.Allowed {
		return nil
	}
	return failed(ReasonForbidden, "%s may not have more than level %s of Pod Security, and the Pod does: %s. A node class allows more by spec.podSecurity", whose,
		level, result.ForbiddenDetail())
}
