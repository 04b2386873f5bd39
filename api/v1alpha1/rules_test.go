package v1alpha1_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/description"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

func newClient(t *testing.T) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	api, err := client.New(apiserver.Config(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return api
}

func create(t *testing.T, api client.Client, object client.Object) {
	t.Helper()
	if err := api.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
}

// checkRefusal compares an answer of the API server with what was expected: "" for acceptance, else part of the reason for which it is invalid.
func checkRefusal(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case want != "" && err == nil:
		t.Errorf("accepted, want it refused with %q", want)
	case want != "" && (!apierrors.IsInvalid(err) || !strings.Contains(err.Error(), want)):
		t.Errorf("refused with %v, want %q", err, want)
	}
}

func mergePatch(text string) client.Patch {
	return client.RawPatch(types.MergePatchType, []byte(text))
}

func fullSpec() v1alpha1.ZuulBuildSpec {
	return v1alpha1.ZuulBuildSpec{
		Job: "job", JobRef: &v1alpha1.JobReference{Name: "ref"}, Node: "node", UUID: "uuid", Number: 7,
		Parameters: map[string]string{"A": "1"}, RequestError: "error",
	}
}

func TestBuildSpecIsImmutable(t *testing.T) {
	api, namespace := newClient(t), apiserver.Namespace(t)
	empty := func() v1alpha1.ZuulBuildSpec { return v1alpha1.ZuulBuildSpec{Job: "job"} }
	aborted := func(reason v1alpha1.AbortReason) func() v1alpha1.ZuulBuildSpec {
		return func() v1alpha1.ZuulBuildSpec {
			return v1alpha1.ZuulBuildSpec{Job: "job", Abort: true, AbortReason: reason}
		}
	}
	const frozen = " cannot change"
	cases := []struct {
		name  string
		spec  func() v1alpha1.ZuulBuildSpec
		patch string
		want  string
	}{
		{"job", fullSpec, `{"job":"other"}`, "job" + frozen},
		{"jobRef", fullSpec, `{"jobRef":{"name":"other"}}`, "jobRef" + frozen},
		{"jobRef removed", fullSpec, `{"jobRef":null}`, "jobRef" + frozen},
		{"jobRef added", empty, `{"jobRef":{"name":"other"}}`, "jobRef" + frozen},
		{"node", fullSpec, `{"node":"other"}`, "node" + frozen},
		{"node removed", fullSpec, `{"node":null}`, "node" + frozen},
		{"node added", empty, `{"node":"other"}`, "node" + frozen},
		{"uuid", fullSpec, `{"uuid":"other"}`, "uuid" + frozen},
		{"uuid removed", fullSpec, `{"uuid":null}`, "uuid" + frozen},
		{"uuid added", empty, `{"uuid":"other"}`, "uuid" + frozen},
		{"parameter", fullSpec, `{"parameters":{"A":"2"}}`, "parameters" + frozen},
		{"another parameter", fullSpec, `{"parameters":{"B":"1"}}`, "parameters" + frozen},
		{"parameters removed", fullSpec, `{"parameters":null}`, "parameters" + frozen},
		{"parameters added", empty, `{"parameters":{"A":"1"}}`, "parameters" + frozen},
		{"requestError", fullSpec, `{"requestError":"other"}`, "requestError" + frozen},
		{"requestError removed", fullSpec, `{"requestError":null}`, "requestError" + frozen},
		{"requestError added", empty, `{"requestError":"other"}`, "requestError" + frozen},
		{"number given", empty, `{"number":1}`, ""},
		{"number", fullSpec, `{"number":8}`, "number is given once"},
		{"number removed", fullSpec, `{"number":null}`, "number is given once"},
		{"number taken back", fullSpec, `{"number":0}`, "number is given once"},
		{"number below 0", empty, `{"number":-1}`, "spec.number"},
		{"number too large", empty, `{"number":9007199254740992}`, "spec.number"},
		{"abort", fullSpec, `{"abort":true}`, ""},
		{"abort with its reason", fullSpec, `{"abort":true,"abortReason":"Abandoned"}`, ""},
		{"abort for no known reason", fullSpec, `{"abort":true,"abortReason":"Mood"}`, "abortReason"},
		{"abort taken back", aborted(""), `{"abort":false}`, "abort can only become true"},
		{"abort removed", aborted(""), `{"abort":null}`, "abort can only become true"},
		{"abortReason", aborted(v1alpha1.AbortStopped), `{"abortReason":"Abandoned"}`, "abortReason cannot change"},
		{"abortReason removed", aborted(v1alpha1.AbortStopped), `{"abortReason":null}`, "abortReason cannot change"},
		{"abortReason added later", aborted(""), `{"abortReason":"Abandoned"}`, "abortReason cannot change"},
		{"nothing", fullSpec, `{}`, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{GenerateName: "b-", Namespace: namespace}, Spec: c.spec()}
			create(t, api, build)
			checkRefusal(t, api.Patch(t.Context(), build, mergePatch(`{"spec":`+c.patch+`}`)), c.want)
		})
	}
}

func TestVerdictIsGivenOnce(t *testing.T) {
	api, namespace := newClient(t), apiserver.Namespace(t)
	const once = "the verdict on a build is given once"
	const succeeded, lost = `{"phase":"Succeeded","result":"SUCCESS"}`, `{"phase":"Lost"}`
	cases := []struct{ name, first, second, want string }{
		{"first", `{"phase":"Running"}`, succeeded, ""},
		{"straight from Queued", `{}`, lost, ""},
		{"same again", succeeded, succeeded, ""},
		{"other facts may follow", succeeded, `{"message":"more","url":"u"}`, ""},
		{"a description may follow", succeeded, `{"description":"<b>x</b>"}`, ""},
		{"a description may change", `{"phase":"Lost","description":"<b>x</b>"}`, `{"description":"y"}`, ""},
		{"a description may go", `{"phase":"Lost","description":"<b>x</b>"}`, `{"description":null}`, ""},
		{"a description does not change it", succeeded, `{"description":"x","result":"FAILURE"}`, once},
		{"longest description", `{}`, `{"description":"` + strings.Repeat("x", description.MaxLength) + `"}`, ""},
		{"longer description", `{}`, `{"description":"` + strings.Repeat("x", description.MaxLength+1) + `"}`, "status.description"},
		{"another phase", succeeded, `{"phase":"Failed"}`, once},
		{"another result", succeeded, `{"result":"FAILURE"}`, once},
		{"another of both", `{"phase":"Failed","result":"FAILURE"}`, succeeded, once},
		{"result removed", succeeded, `{"result":null}`, once},
		{"result added", lost, `{"result":"SUCCESS"}`, once},
		{"another reason", `{"phase":"Lost","reason":"NodeLost"}`, `{"reason":"ContainerCreating"}`, once},
		{"a reason added", lost, `{"reason":"ContainerCreating"}`, once},
		{"running again", `{"phase":"Aborted","result":"ABORTED"}`, `{"phase":"Running"}`, once},
		{"back to Queued by default", lost, `{"phase":null}`, once},
		{"no such phase", `{}`, `{"phase":"Sleeping"}`, "status.phase"},
		{"no such result", `{}`, `{"phase":"Failed","result":"Failure: yes"}`, "status.result"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{GenerateName: "b-", Namespace: namespace}, Spec: fullSpec()}
			create(t, api, build)
			checkRefusal(t, api.Status().Patch(t.Context(), build, mergePatch(`{"status":`+c.first+`}`)), "")
			checkRefusal(t, api.Status().Patch(t.Context(), build, mergePatch(`{"status":`+c.second+`}`)), c.want)
		})
	}
	t.Run("status removed as a whole", func(t *testing.T) {
		build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{GenerateName: "b-", Namespace: namespace}, Spec: fullSpec()}
		create(t, api, build)
		checkRefusal(t, api.Status().Patch(t.Context(), build, mergePatch(`{"status":`+succeeded+`}`)), "")
		checkRefusal(t, api.Status().Patch(t.Context(), build, mergePatch(`{"status":null}`)), once)
	})
}

func TestBuildDefaultsAndFields(t *testing.T) {
	api, namespace := newClient(t), apiserver.Namespace(t)
	for name, spec := range map[string]v1alpha1.ZuulBuildSpec{"a": {Job: "one", Node: "big"}, "b": {Job: "one"}, "c": {Job: "Two.2_x", Node: "big"}} {
		build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Spec: spec}
		create(t, api, build)
		if build.Status.Phase != v1alpha1.PhaseQueued {
			t.Errorf("a new build is %q, not Queued", build.Status.Phase)
		}
	}
	running := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: namespace}}
	checkRefusal(t, api.Status().Patch(t.Context(), running, mergePatch(`{"status":{"phase":"Running"}}`)), "")

	cases := []struct {
		fields client.MatchingFields
		want   string
	}{
		{client.MatchingFields{"spec.job": "one"}, "a b"},
		{client.MatchingFields{"spec.job": "Two.2_x"}, "c"},
		{client.MatchingFields{"spec.node": "big"}, "a c"},
		{client.MatchingFields{"status.phase": "Queued"}, "a c"},
		{client.MatchingFields{"status.phase": "Running"}, "b"},
		{client.MatchingFields{"spec.job": "one", "status.phase": "Queued"}, "a"},
	}
	for _, c := range cases {
		list := &v1alpha1.ZuulBuildList{}
		if err := api.List(t.Context(), list, client.InNamespace(namespace), c.fields); err != nil {
			t.Fatal(err)
		}
		var names []string
		for i := range list.Items {
			names = append(names, list.Items[i].Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%v selects %q, want %q", c.fields, got, c.want)
		}
	}
}

func TestJobIsScriptOrTemplate(t *testing.T) {
	api, namespace := newClient(t), apiserver.Namespace(t)
	template := &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "build", Image: "i"}}}}
	const either = "give either image and script"
	cases := []struct {
		name string
		spec v1alpha1.ZuulJobSpec
		want string
	}{
		{"image and script", v1alpha1.ZuulJobSpec{Image: "i", Script: "s"}, ""},
		{"with resources", v1alpha1.ZuulJobSpec{Image: "i", Script: "s", Resources: &corev1.ResourceRequirements{}}, ""},
		{"template", v1alpha1.ZuulJobSpec{Template: template}, ""},
		{"nothing", v1alpha1.ZuulJobSpec{}, either},
		{"image alone", v1alpha1.ZuulJobSpec{Image: "i"}, either},
		{"script alone", v1alpha1.ZuulJobSpec{Script: "s"}, either},
		{"template and image", v1alpha1.ZuulJobSpec{Template: template, Image: "i"}, either},
		{"template and script", v1alpha1.ZuulJobSpec{Template: template, Script: "s"}, either},
		{"template and resources", v1alpha1.ZuulJobSpec{Template: template, Resources: &corev1.ResourceRequirements{}}, either},
		{"script too long", v1alpha1.ZuulJobSpec{Image: "i", Script: strings.Repeat("x", 120001)}, "spec.script"},
		{"a name of Zuul's", v1alpha1.ZuulJobSpec{Image: "i", Script: "s", JobName: "gate-Project.unit_tests:x"}, ""},
		{"a name with a space", v1alpha1.ZuulJobSpec{Image: "i", Script: "s", JobName: "a b"}, "spec.jobName"},
		{"a name beyond ASCII", v1alpha1.ZuulJobSpec{Image: "i", Script: "s", JobName: "ä"}, "spec.jobName"},
		{"a node with a space", v1alpha1.ZuulJobSpec{Image: "i", Script: "s", Nodes: []string{"a b"}}, "spec.nodes"},
		{"a node twice", v1alpha1.ZuulJobSpec{Image: "i", Script: "s", Nodes: []string{"a", "a"}}, "spec.nodes"},
		{"a limit", v1alpha1.ZuulJobSpec{Image: "i", Script: "s", MaxBuilds: 1}, ""},
		{"a limit below 1", v1alpha1.ZuulJobSpec{Image: "i", Script: "s", MaxBuilds: -1}, "spec.maxBuilds"},
		{"a first number below 1", v1alpha1.ZuulJobSpec{Image: "i", Script: "s", FirstBuildNumber: -1}, "spec.firstBuildNumber"},
		{"a first number too large", v1alpha1.ZuulJobSpec{Image: "i", Script: "s", FirstBuildNumber: 1 << 53}, "spec.firstBuildNumber"},
		{"Secrets to censor", censoring(v1alpha1.CensoredSecret{Name: "a.b-c"}, v1alpha1.CensoredSecret{Name: "b", Keys: []string{"tls.key", "A_b-c"}}), ""},
		{"no such name of a Secret", censoring(v1alpha1.CensoredSecret{Name: "a/b"}), "spec.censor[0].name"},
		{"no such key of a Secret", censoring(v1alpha1.CensoredSecret{Name: "a", Keys: []string{"\u202e"}}), "spec.censor[0].keys[0]"},
		{"a Secret twice", censoring(v1alpha1.CensoredSecret{Name: "a"}, v1alpha1.CensoredSecret{Name: "a", Keys: []string{"b"}}), "spec.censor[1]"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{GenerateName: "j-", Namespace: namespace}, Spec: c.spec}
			checkRefusal(t, api.Create(t.Context(), job), c.want)
		})
	}
}

func censoring(secrets ...v1alpha1.CensoredSecret) v1alpha1.ZuulJobSpec {
	return v1alpha1.ZuulJobSpec{Image: "i", Script: "s", Censor: secrets}
}

// TestRetentionIsChecked: what cannot be read as a duration would keep the operator from reading any ZuulJob at all.
func TestRetentionIsChecked(t *testing.T) {
	api, namespace := newClient(t), apiserver.Namespace(t)
	for patch, want := range map[string]string{
		`{}`:                           "",
		`{"pod":"0s","build":"1h30m"}`: "",
		`{"keepFailedPodFor":"1.5h","successes":{"for":"168h0m0s","count":1},"failures":{"for":"999999h999999h1s"}}`: "",
		`{"pod":"1d"}`:                    "spec.retention.pod",
		`{"pod":"-1h"}`:                   "spec.retention.pod",
		`{"build":"week"}`:                "spec.retention.build",
		`{"build":""}`:                    "spec.retention.build",
		`{"keepFailedPodFor":"9999999h"}`: "spec.retention.keepFailedPodFor",
		`{"successes":{"for":"999999h999999h999999h"}}`: "spec.retention.successes.for",
		`{"failures":{"for":"7 days"}}`:                 "spec.retention.failures.for",
		`{"successes":{"count":0}}`:                     "spec.retention.successes.count",
		`{"failures":{"count":100001}}`:                 "spec.retention.failures.count",
	} {
		t.Run(patch, func(t *testing.T) {
			job := &v1alpha1.ZuulJob{
				ObjectMeta: metav1.ObjectMeta{GenerateName: "j-", Namespace: namespace},
				Spec:       v1alpha1.ZuulJobSpec{Image: "i", Script: "s"},
			}
			create(t, api, job)
			checkRefusal(t, api.Patch(t.Context(), job, mergePatch(`{"spec":{"retention":`+patch+`}}`)), want)
		})
	}
}

// TestTimeoutsAreChecked: the same of the clocks, of jobs and of node classes.
func TestTimeoutsAreChecked(t *testing.T) {
	api, namespace := newClient(t), apiserver.Namespace(t)
	job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{GenerateName: "j-", Namespace: namespace}, Spec: v1alpha1.ZuulJobSpec{Image: "i", Script: "s"}}
	class := &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{GenerateName: "clocks-"}}
	create(t, api, job)
	create(t, api, class)
	for _, field := range []string{"unscheduled", "pending", "run", "abort"} {
		for value, want := range map[string]string{"1h30m": "", "1d": "spec.timeouts." + field} {
			for _, object := range []client.Object{job, class} {
				patch := mergePatch(fmt.Sprintf(`{"spec":{"timeouts":{%q:%q}}}`, field, value))
				checkRefusal(t, api.Patch(t.Context(), object, patch, client.DryRunAll), want)
			}
		}
	}
}

// TestReadableAlone: the API server takes no value that a client cannot decode, since then nobody could list any object of the kind. It is asked without types, for
// the test could not decode it either.
func TestReadableAlone(t *testing.T) {
	api, namespace := newClient(t), apiserver.Namespace(t)
	cpu := func(value string) string { return `"resources":{"limits":{"cpu":` + value + `}}` }
	container := func(field string) string {
		return `{"template":{"spec":{"containers":[{"name":"build","image":"i",` + field + `}]}}}`
	}
	divisor := func(value string) string {
		return container(`"env":[{"name":"A","valueFrom":{"resourceFieldRef":{"resource":"limits.cpu","divisor":` + value + `}}}]`)
	}
	port := func(value string) string { return container(`"livenessProbe":{"tcpSocket":{"port":` + value + `}}`) }
	refused := func(kind, spec string) error {
		object := &unstructured.Unstructured{}
		text := `{"apiVersion":"zuulbuild.dev/v1alpha1","kind":"` + kind + `","metadata":{"name":"readable"},"spec":` + spec + `}`
		if err := object.UnmarshalJSON([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if kind == "ZuulJob" {
			object.SetNamespace(namespace)
		}
		return api.Create(t.Context(), object, client.DryRunAll)
	}
	quantities := map[string]string{
		`"1e1.5"`: "cpu", `"1e.5"`: "cpu", `"1e99999999999999999999"`: "cpu", `"1e2147483648"`: "cpu", `"1E-1000"`: "cpu", `"1 Gi"`: "cpu", `1.5`: "cpu",
		`"` + strings.Repeat("9", 65) + `"`: "cpu", `"` + strings.Repeat("9", 64) + `"`: "",
		`"1.5Gi"`: "", `"2"`: "", `2`: "", `"1e3"`: "", `"1E-3"`: "", `"-.5e+999"`: "", `"1."`: "", `"100m"`: "", `"1E"`: "",
	}
	for value, want := range quantities {
		t.Run("quantity "+value, func(t *testing.T) {
			checkRefusal(t, refused("ZuulJob", `{"image":"i","script":"s",`+cpu(value)+`}`), want)
			checkRefusal(t, refused("ZuulNodeClass", `{`+cpu(value)+`}`), want)
			checkRefusal(t, refused("ZuulJob", divisor(value)), strings.Replace(want, "cpu", "divisor", 1))
			if want == "" {
				quantity := resource.Quantity{}
				if err := json.Unmarshal([]byte(value), &quantity); err != nil {
					t.Error("accepted, but:", err)
				}
			}
		})
	}
	for value, want := range map[string]string{`3000000000`: "port", `-3000000000`: "port", `1.5`: "port", `8080`: "", `"web"`: "", `"3000000000"`: ""} {
		t.Run("port "+value, func(t *testing.T) { checkRefusal(t, refused("ZuulJob", port(value)), want) })
	}
	job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Name: "timed", Namespace: namespace}, Spec: v1alpha1.ZuulJobSpec{Image: "i", Script: "s"}}
	create(t, api, job)
	for value, want := range map[string]string{
		"2026-05-04t03:02:01z": "estimateTime", "2026-05-04T03:02:01+99:00": "estimateTime", "2026-05-04T03:02:01x5Z": "estimateTime",
		"2026-05-04T03:02:01ZT": "estimateTime", "2026-02-30T03:02:01Z": "estimateTime", "2026-05-04": "estimateTime",
		"2026-05-04T03:02:01Z": "", "2026-05-04T23:59:59.123456789+23:59": "",
	} {
		t.Run("time "+value, func(t *testing.T) {
			object := &unstructured.Unstructured{}
			object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("ZuulJob"))
			object.SetNamespace(namespace)
			object.SetName(job.Name)
			checkRefusal(t, api.Status().Patch(t.Context(), object, mergePatch(fmt.Sprintf(`{"status":{"estimateTime":%q}}`, value)), client.DryRunAll), want)
			if err := json.Unmarshal([]byte(fmt.Sprintf("%q", value)), &metav1.Time{}); want == "" && err != nil {
				t.Error("accepted, but:", err)
			}
		})
	}
}

func TestNodeClassLimit(t *testing.T) {
	api := newClient(t)
	for limit, want := range map[int32]string{1: "", -1: "spec.maxBuilds"} {
		class := &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{GenerateName: "limit-"}, Spec: v1alpha1.ZuulNodeClassSpec{MaxBuilds: limit}}
		checkRefusal(t, api.Create(t.Context(), class, client.DryRunAll), want)
	}
}

// TestTemplateIsKept: what the API server drops from a template because the schema does not know it would be missing from every Pod.
func TestTemplateIsKept(t *testing.T) {
	api, namespace := newClient(t), apiserver.Namespace(t)
	always := corev1.ContainerRestartPolicyAlways
	spec := v1alpha1.ZuulJobSpec{Template: &corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"team": "a"}, Annotations: map[string]string{"note": "b"}},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "proxy", Image: "i", RestartPolicy: &always}},
			Containers: []corev1.Container{{
				Name: "build", Image: "i", Command: []string{"run"}, Env: []corev1.EnvVar{{Name: "A", Value: "$(ZUUL_PROJECT)"}},
				VolumeMounts: []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}},
			}},
			Volumes:      []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
			NodeSelector: map[string]string{"arch": "arm64"},
		},
	}}
	job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Name: "job", Namespace: namespace}, Spec: *spec.DeepCopy()}
	create(t, api, job)
	if diff := cmp.Diff(spec, job.Spec); diff != "" {
		t.Errorf("(-sent +kept):\n%s", diff)
	}
}

// TestColumns: what `kubectl get zuulbuilds` and `kubectl get zuuljobs` show.
func TestColumns(t *testing.T) {
	api, namespace := newClient(t), apiserver.Namespace(t)
	create(t, api, &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: namespace}, Spec: v1alpha1.ZuulBuildSpec{
		Job: "job", Number: 7, Node: "big", Parameters: map[string]string{"ZUUL_PROJECT": "project", "ZUUL_CHANGE": "42"},
	}})
	job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Name: "j", Namespace: namespace}, Spec: v1alpha1.ZuulJobSpec{JobName: "Job", Image: "i", Script: "s"}}
	create(t, api, job)
	checkRefusal(t, api.Status().Patch(t.Context(), job, mergePatch(`{"status":{"estimatedDuration":"1m30s"}}`)), "")
	for resource, want := range map[string][]string{
		"zuulbuilds": {"Name=b", "Job=job", "Number=7", "Node=big", "Project=project", "Change=42", "Phase=Queued", "Result=", "Reason="},
		"zuuljobs":   {"Name=j", "Job=Job", "Registered=", "Reason=", "Image=i", "Estimated=1m30s"},
	} {
		config := apiserver.Config(t)
		config.GroupVersion, config.APIPath = &v1alpha1.GroupVersion, "/apis"
		table := requestTable(t, config, namespace, resource)
		var short []string
		for i, column := range table.ColumnDefinitions {
			if column.Priority == 0 && column.Name != "Age" {
				short = append(short, column.Name+"="+cell(table.Rows[0].Cells[i]))
			}
		}
		if diff := cmp.Diff(want, short); diff != "" {
			t.Errorf("%s (-want +got):\n%s", resource, diff)
		}
	}
}
