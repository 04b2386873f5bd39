package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

// abortFixture is a namespace with builds, and nobody who runs them.
type abortFixture struct {
	*testing.T
	api        client.Client
	namespace  string
	kubeconfig string
}

func newAbortFixture(t *testing.T) *abortFixture {
	scheme := runtime.NewScheme()
	must(t, v1alpha1.AddToScheme(scheme))
	api, err := client.New(apiserver.Config(t), client.Options{Scheme: scheme})
	must(t, err)
	return &abortFixture{T: t, api: api, namespace: apiserver.Namespace(t), kubeconfig: apiserver.Kubeconfig(t)}
}

// build makes one of a job that has got as far as this.
func (f *abortFixture) build(name, job string, status v1alpha1.ZuulBuildStatus) *v1alpha1.ZuulBuild {
	f.Helper()
	build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: name}, Spec: v1alpha1.ZuulBuildSpec{Job: job}}
	must(f, f.api.Create(f.Context(), build))
	f.becomes(build, status)
	return build
}

func (f *abortFixture) becomes(build *v1alpha1.ZuulBuild, status v1alpha1.ZuulBuildStatus) {
	f.Helper()
	before := build.DeepCopy()
	build.Status = status
	must(f, f.api.Status().Patch(f.Context(), build, client.MergeFrom(before)))
}

// aborted are the names of the builds that are to stop.
func (f *abortFixture) aborted() (names []string) {
	f.Helper()
	builds := v1alpha1.ZuulBuildList{}
	must(f, f.api.List(f.Context(), &builds, client.InNamespace(f.namespace)))
	for i := range builds.Items {
		if build := &builds.Items[i]; build.Spec.Abort {
			names = append(names, build.Name)
			if build.Spec.AbortReason != "" {
				f.Errorf("%s stops because of %q", build.Name, build.Spec.AbortReason)
			}
		}
	}
	return names
}

// abort runs the command in the namespace.
func (f *abortFixture) abort(arguments ...string) (code int, out, errs string) {
	f.Helper()
	return runAbort(f, append([]string{"--kubeconfig", f.kubeconfig, "--namespace", f.namespace}, arguments...)...)
}

// runAbort runs the command; what its error says is the end of errs.
func runAbort(t testing.TB, arguments ...string) (code int, out, errs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var output, errorOutput bytes.Buffer
	command := newAbortCommand()
	command.SilenceErrors, command.SilenceUsage = true, true
	command.SetArgs(arguments)
	command.SetOut(&output)
	command.SetErr(&errorOutput)
	err := command.ExecuteContext(ctx)
	if err != nil {
		code = 1
		var exit exitError
		if errors.As(err, &exit) {
			code = exit.ExitCode()
		}
		_, _ = fmt.Fprintln(&errorOutput, err)
	}
	return code, output.String(), errorOutput.String()
}

var (
	runningStatus = v1alpha1.ZuulBuildStatus{Phase: v1alpha1.PhaseRunning}
	successStatus = v1alpha1.ZuulBuildStatus{Phase: v1alpha1.PhaseSucceeded, Result: "SUCCESS"}
	lostStatus    = v1alpha1.ZuulBuildStatus{Phase: v1alpha1.PhaseLost, Reason: "NodeLost"}
	abortedStatus = v1alpha1.ZuulBuildStatus{Phase: v1alpha1.PhaseAborted, Result: "ABORTED"}
)

func TestAbort(t *testing.T) {
	f := newAbortFixture(t)
	f.build("queued", "unit", v1alpha1.ZuulBuildStatus{Phase: v1alpha1.PhaseQueued})
	f.build("running", "unit", runningStatus)
	f.build("other", "unit", runningStatus)
	f.build("successful", "unit", successStatus)
	f.build("lost", "unit", lostStatus)

	code, out, errs := f.abort("zuulbuild.zuulbuild.dev/queued", "zb/running", "running", "successful", "lost")
	want := "zuulbuild/queued: stopping\nzuulbuild/running: stopping\nzuulbuild/successful: already ended SUCCESS\n" +
		"zuulbuild/lost: already ended without a result (NodeLost), so that Zuul runs it again\n"
	if diff := cmp.Diff(want, out); diff != "" || code != 0 || errs != "" {
		t.Errorf("exit code %d, errors %q, output (-want +got):\n%s", code, errs, diff)
	}
	if diff := cmp.Diff([]string{"queued", "running"}, f.aborted()); diff != "" {
		t.Errorf("builds that stop (-want +got):\n%s", diff)
	}

	code, out, errs = f.abort("missing", "queued")
	want = fmt.Sprintf("zuulbuild/missing: there is no such ZuulBuild in namespace %s; --namespace chooses another, ", f.namespace)
	if code != 1 || !strings.HasPrefix(errs, want) || !strings.HasSuffix(errs, "\n1 of 2 builds could not be stopped\n") {
		t.Errorf("exit code %d, errors %q; want 1 and %q", code, errs, want)
	}
	if out != "zuulbuild/queued: already stopping\n" {
		t.Errorf("output %q", out)
	}
}

func TestAbortAllOfJob(t *testing.T) {
	f := newAbortFixture(t)
	for name, job := range map[string]string{"a": "unit", "b": "unit", "c": "docs", "d": "Other_Job.py3", "e": "unit-tests"} {
		f.build(name, job, runningStatus)
	}
	f.build("ended", "unit", successStatus)
	code, out, errs := f.abort("--all-of-job", "unit", "--all-of-job", "Other_Job.py3", "--all-of-job", "none", "c", "a")
	none := fmt.Sprintf("job none has no unfinished build in namespace %s\n", f.namespace)
	if code != 0 || errs != "" || strings.Count(out, ": stopping\n") != 4 || strings.Count(out, "\n") != 5 || !strings.Contains(out, none) {
		t.Errorf("exit code %d, output %q, errors %q; want 4 builds to stop, and %q", code, out, errs, none)
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "d"}, f.aborted()); diff != "" {
		t.Errorf("builds that stop (-want +got):\n%s", diff)
	}
}

// TestAbortWait: the command returns when the builds that it stopped, or found stopping, have ended.
func TestAbortWait(t *testing.T) {
	f := newAbortFixture(t)
	builds := map[string]*v1alpha1.ZuulBuild{}
	for _, name := range []string{"stops", "succeeds", "goes", "ended"} {
		builds[name] = f.build(name, "unit", runningStatus)
	}
	f.becomes(builds["ended"], successStatus)
	must(t, f.api.Patch(t.Context(), builds["succeeds"], client.RawPatch(types.MergePatchType, []byte(`{"spec":{"abort":true}}`))))
	type result struct {
		code      int
		out, errs string
	}
	done := make(chan result, 1)
	go func() {
		code, out, errs := f.abort("--wait", "stops", "succeeds", "goes", "ended")
		done <- result{code, out, errs}
	}()
	gearmantest.Eventually(t, 30*time.Second, "three builds stop", func() bool { return len(f.aborted()) == 3 })
	f.becomes(builds["stops"], abortedStatus)
	must(t, f.api.Delete(t.Context(), builds["goes"]))
	select {
	case r := <-done:
		t.Fatalf("it did not wait for the second build: %+v", r)
	case <-time.After(2 * abortPolling):
	}
	f.becomes(builds["succeeds"], successStatus)
	want := result{out: "zuulbuild/stops: stopping\nzuulbuild/succeeds: already stopping\nzuulbuild/goes: stopping\nzuulbuild/ended: already ended SUCCESS\n" +
		"zuulbuild/stops: ended ABORTED\nzuulbuild/succeeds: ended SUCCESS\nzuulbuild/goes: deleted meanwhile\n"}
	if diff := cmp.Diff(want, <-done, cmp.AllowUnexported(result{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAbortUsage(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	t.Setenv("KUBECONFIG", missing)
	empty := filepath.Join(t.TempDir(), "empty")
	must(t, os.WriteFile(empty, nil, 0o600))
	for name, test := range map[string]struct {
		arguments []string
		code      int
		message   string
	}{
		"nothing":         {nil, 2, "name of a BUILD, or --all-of-job"},
		"unknown flag":    {[]string{"--nonsense"}, 2, "unknown flag: --nonsense; see zuulbuild abort --help"},
		"a Pod":           {[]string{"pod/x"}, 2, `"pod/x" is no ZuulBuild`},
		"a ZuulJob":       {[]string{"zuuljob.zuulbuild.dev/x"}, 2, "is no ZuulBuild"},
		"no name":         {[]string{"zb/"}, 2, `"zb/" is no ZuulBuild`},
		"no kubeconfig":   {[]string{"x", "--kubeconfig", missing}, 1, missing},
		"an empty one":    {[]string{"x", "--kubeconfig", empty}, 1, "give --kubeconfig"},
		"unknown context": {[]string{"x", "--context", "nowhere"}, 1, "nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, errs := runAbort(t, test.arguments...)
			if code != test.code || !strings.Contains(errs, test.message) {
				t.Errorf("exit code %d, %q; want %d and %q in it", code, errs, test.code, test.message)
			}
		})
	}
}
