package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// What the schema of the values says of a job's spec is what the API server says of it. The README tells what is left to the API server.
func TestJobsAreCheckedAsTheAPIServerDoes(t *testing.T) {
	c := newClient(t)
	withDefinitions(t)
	makeNamespace(t, c, "zuulbuild-builds", nil)
	const pod = "template: {spec: {containers: [{name: a}]}}"
	for _, test := range []struct {
		spec            string
		helm, apiServer bool // takes it
	}{
		{"image: i, script: s", true, true},
		{"image: i, script: s, resources: {limits: {cpu: 1}}", true, true},
		{pod, true, true},
		{"nodes: [large]", false, false},
		{"image: i", false, false},
		{"script: s", false, false},
		{"image: i, script: s, " + pod, false, false},
		{"image: i, " + pod, false, false},
		{"script: s, " + pod, false, false},
		{"resources: {}, " + pod, false, false},
		{"template: {metadata: {}}", false, false},
		{"template: {spec: {}}", false, false},
		{"image: '', script: s", false, false},
		{"image: i, script: s, onReason: {NodeLost: fail, InitFailed: retry}", true, true},
		{"image: i, script: s, onReason: {}", true, true},
		{"image: i, script: s, onReason: {TimedOut: retry}", false, false},
		{"image: i, script: s, onReason: {NodeLost: ignore}", false, false},
		{"image: i, script: s, timeouts: {run: 1 hour}", false, false},
		{"image: i, script: s, nodes: [a, a]", true, false},
		{"image: i, script: s, censor: [{name: a}, {name: a}]", true, false},
		{"image: i, script: s, maxBuilds: 3000000000", false, false},
		{"image: i, script: s, resources: {limits: {cpu: 1e1.5}}", false, false},
	} {
		file, values := filepath.Join(t.TempDir(), "values.yaml"), fmt.Sprintf("jobs: {a: {spec: {%s}}}\n", test.spec)
		if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := template(t, "--values", file); (err == nil) != test.helm {
			t.Errorf("Helm says of %s: %v", test.spec, err)
		}
		job := &unstructured.Unstructured{}
		text := fmt.Sprintf("{apiVersion: zuulbuild.dev/v1alpha1, kind: ZuulJob, metadata: {name: a, namespace: zuulbuild-builds}, spec: {%s}}", test.spec)
		if err := yaml.Unmarshal([]byte(text), &job.Object); err != nil {
			t.Fatal(err)
		}
		switch err := c.Create(t.Context(), job, client.DryRunAll); {
		case err != nil && !apierrors.IsInvalid(err):
			t.Fatal(err)
		case (err == nil) != test.apiServer:
			t.Errorf("the API server says of %s: %v", test.spec, err)
		}
	}
}
