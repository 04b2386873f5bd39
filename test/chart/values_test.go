package chart

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"zuulbuild.dev/zuulbuild/hack"
	"zuulbuild.dev/zuulbuild/hack/localcluster"
)

func TestLint(t *testing.T) {
	t.Parallel()
	for name, file := range valuesFiles {
		t.Run(name, func(t *testing.T) {
			arguments := []string{"lint", "--strict", chartPath}
			if file != "" {
				arguments = append(arguments, "--values", file)
			}
			if output, err := helm(t, arguments...); err != nil {
				t.Error(output, err)
			}
		})
	}
}

// What single values make of the chart, as its suites in charts/zuulbuild/tests say. They are rendered by Helm 3, which is not the Helm of other tests.
func TestSuites(t *testing.T) {
	t.Parallel()
	program := require(t, localcluster.Tool("helm-unittest"), "tools helm-unittest")
	if output, err := command(t, nil, program, "--strict", chartPath); err != nil {
		t.Error(output, err)
	}
}

// The chart refuses a Kubernetes that is older than those it is tried on, and takes a vendor's build of the least. The pages say the same.
func TestKubernetesVersions(t *testing.T) {
	t.Parallel()
	versions, err := hack.Versions()
	if err != nil {
		t.Fatal(err)
	}
	var minors []int
	for i, version := range hack.KubernetesVersions(versions) {
		minor := 0
		if _, err := fmt.Sscanf(version, "v1.%d.", &minor); err != nil {
			t.Fatal(version, err)
		}
		if minors = append(minors, minor); minor != minors[0]+i {
			t.Errorf("%s is not of the minor version after the one before", version)
		}
	}
	least, newest := minors[0], minors[len(minors)-1]
	if _, err := template(t, "--kube-version", fmt.Sprintf("v1.%d.0-vendor.1", least)); err != nil {
		t.Error(err)
	}
	if _, err := template(t, "--kube-version", fmt.Sprintf("v1.%d.99", least-1)); err == nil || !strings.Contains(err.Error(), "kubeVersion") {
		t.Errorf("Kubernetes 1.%d is refused with: %v", least-1, err)
	}
	for file, want := range map[string]string{
		"README.md":                  fmt.Sprintf("Kubernetes 1.%d or newer", least),
		"charts/zuulbuild/README.md": fmt.Sprintf("Kubernetes 1.%d or newer", least),
		"docs/dependencies.md":       fmt.Sprintf("Kubernetes 1.%d to 1.%d", least, newest),
	} {
		content, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(content), want) {
			t.Errorf("%s does not say %q", file, want)
		}
	}
}

func defaults(t *testing.T) map[string]any {
	t.Helper()
	content, err := os.ReadFile(chartPath + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]any{}
	if err := yaml.Unmarshal(content, &values); err != nil {
		t.Fatal(err)
	}
	return values
}

// refusal is what helm says of values.
func refusal(t *testing.T, values any) string {
	t.Helper()
	content, err := yaml.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err = template(t, "--values", file); err != nil {
		return err.Error()
	}
	t.Fatalf("these values were accepted:\n%s", content)
	return ""
}

// freeForm are the objects that take keys of one's own.
var freeForm = []string{"commonLabels", "podLabels", "podAnnotations", "nodeSelector", "annotations", "labels", "jobs", "nodeClasses", "requests", "limits", "quota",
	"default", "defaultRequest", "matchLabels"}

// A key that does not exist is refused by name, in whatever object it is, and so is a value of another type.
func TestWrongValuesAreRefused(t *testing.T) {
	t.Parallel()
	everything := map[string]any{}
	content, err := os.ReadFile(valuesFiles["everything"])
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(content, &everything); err != nil {
		t.Fatal(err)
	}
	for name, values := range map[string]map[string]any{"default": defaults(t), "everything": everything} {
		t.Run(name, func(t *testing.T) {
			var unknown, wrong []string
			misspelt := spoil(values, "", func(object map[string]any, path string) {
				if last := path[strings.LastIndex(path, "/")+1:]; !slices.Contains(freeForm, last) && path != "/affinity" {
					object["noSuchKey"] = true
					unknown = append(unknown, path)
				}
			}, nil).(map[string]any)
			message := refusal(t, misspelt)
			for _, path := range unknown {
				if !strings.Contains(message, fmt.Sprintf("at '%s': additional properties 'noSuchKey' not allowed", path)) {
					t.Errorf("no word of an unknown key in %q", path)
				}
			}

			mistyped := spoil(values, "", nil, func(value any, path string) any {
				if slices.Contains([]string{"/gearman", "/extraObjects"}, path) {
					return value
				}
				wrong = append(wrong, path)
				switch value.(type) {
				case string:
					return []any{}
				case float64:
					return true
				default:
					return "no such thing"
				}
			})
			message = refusal(t, mistyped)
			for _, path := range wrong {
				if !strings.Contains(message, fmt.Sprintf("at '%s'", path)) {
					t.Errorf("no word of the wrong type of %q", path)
				}
			}
			if t.Failed() {
				t.Log(message)
			}
		})
	}
}

// spoil is a copy of values in which object was called for each object, before its children, and leaf has replaced everything else.
func spoil(value any, path string, object func(map[string]any, string), leaf func(any, string) any) any {
	switch value := value.(type) {
	case map[string]any:
		out := map[string]any{}
		for _, key := range slices.Sorted(maps.Keys(value)) {
			if key == "extraObjects" || path == "/extraObjects" {
				continue
			}
			out[key] = spoil(value[key], path+"/"+strings.ReplaceAll(key, "/", "~1"), object, leaf)
		}
		if object != nil {
			object(out, path)
		}
		return out
	case []any:
		if len(value) == 0 || leaf == nil && !isObject(value[0]) {
			break
		}
		out := []any{}
		for i, item := range value {
			out = append(out, spoil(item, fmt.Sprintf("%s/%d", path, i), object, leaf))
		}
		return out
	}
	if leaf == nil {
		return value
	}
	return leaf(value, path)
}

func isObject(value any) bool {
	_, ok := value.(map[string]any)
	return ok
}

func TestMistakesPeopleMake(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ values, want string }{
		"a job's misspelt field":       {"jobs: {a: {spec: {image: i, skript: s}}}", "at '/jobs/a/spec': additional properties 'skript'"},
		"a job without a script":       {"jobs: {a: {spec: {image: i}}}", "at '/jobs/a/spec': missing property 'script'"},
		"a script and a template":      {"jobs: {a: {spec: {script: s, template: {spec: {containers: [{name: a}]}}}}}", "at '/jobs/a/spec/script': false schema"},
		"a template without a Pod":     {"jobs: {a: {spec: {template: {metadata: {}}}}}", "at '/jobs/a/spec/template': missing property 'spec'"},
		"no job's reason":              {"jobs: {a: {spec: {image: i, script: s, onReason: {TimedOut: retry}}}}", "at '/jobs/a/spec/onReason': additional properties 'TimedOut' not allowed"},
		"a Pod's misspelt field":       {"jobs: {a: {spec: {template: {spec: {containers: [{name: a, imagee: b}]}}}}}", "containers/0': additional properties 'imagee'"},
		"a node class's misspelt":      {"nodeClasses: {a: {maxbuilds: 1}}", "at '/nodeClasses/a': additional properties 'maxbuilds'"},
		"a name that cannot be":        {"jobs: {Unit_Tests: {spec: {image: i}}}", "Unit_Tests"},
		"a server without an address":  {"gearman: {servers: [{name: zuul}]}", "at '/gearman/servers/0': missing property 'address'"},
		"a server's name with a slash": {"gearman: {servers: [{name: a/b, address: c}]}", "at '/gearman/servers/0/name'"},
		"an ingress without a host":    {"pages: {ingress: {enabled: true}}", "at '/pages/ingress/host'"},
		"a route without gateways":     {"pages: {httpRoute: {enabled: true, host: a}}", "at '/pages/httpRoute/parentRefs'"},
		"no such scope":                {"scope: namespace", "at '/scope': value must be one of 'namespaces', 'cluster'"},
		"nowhere to work":              {"buildNamespaces: []", "at '/buildNamespaces': minItems"},
		"a job in a foreign namespace": {"jobs: {a: {namespace: elsewhere, spec: {image: i, script: s}}}", "elsewhere is none of buildNamespaces"},
		"a Secret that cannot be":      {"buildNamespaces: [{name: a, readSecrets: [Deploy_Token]}]", "at '/buildNamespaces/0/readSecrets/0'"},
		"a port as text":               {"metrics: {port: '9090'}", "at '/metrics/port': got string, want integer"},
		"a duration":                   {"drainTimeoutSeconds: 1h", "at '/drainTimeoutSeconds': got string, want integer"},
		"no builds":                    {"maxBuilds: 0", "at '/maxBuilds': minimum"},
		"a namespace of others":        {"buildNamespaces: [{name: ci, quota: {pods: 5}}]", "buildNamespaces[0] (ci).quota: only a namespace that the chart makes"},
		"a namespace with a dot":       {"buildNamespaces: [{name: a.b}]", "buildNamespaces[0] (a.b).name: a namespace's is of at most 63"},
		"a namespace's long name":      {"buildNamespaces: [{name: " + strings.Repeat("a", 64) + "}]", "aaa).name: a namespace's is of at most 63"},
		"a namespace twice":            {"buildNamespaces: [{name: a, create: true}, {name: b}, {name: a}]", "buildNamespaces[2] (a).name: that is the name of another"},
		"a server named embedded":      {"gearman: {servers: [{name: embedded, address: a}], embedded: {enabled: true}}", "gearman.servers[0].name: \"embedded\" is that of gearman.embedded"},
		"the embedded server twice":    {"gearman: {servers: [{address: 'zuulbuild-gearman.zuulbuild-system.svc'}], embedded: {enabled: true}}", "gearman.servers[0].address: "},
		"metrics beside the pages":     {"metrics: {port: 8080}", "metrics.port: 8080 is that of the Pod's pages"},
		"metrics beside the health":    {"metrics: {port: 8081}", "metrics.port: 8081 is that of the Pod's health"},
		"builds beside the operator":   {"buildNamespaces: [{name: zuulbuild-system}]", "cannot share the namespace of the operator"},
		"alerts without metrics":       {"metrics: {enabled: false, prometheusRule: {enabled: true}}", "metrics.prometheusRule.enabled: there are no metrics"},
		"readers of open metrics":      {"metrics: {secure: false, readers: [{name: a, namespace: b}]}", "metrics.readers: that is for"},
		"readers without roles":        {"{rbac: {create: false}, metrics: {readers: [{name: a, namespace: b}]}}", "metrics.readers: without rbac.create the chart gives nobody that right"},
		"Secrets without roles":        {"{rbac: {create: false}, buildNamespaces: [{name: a, readSecrets: [b]}]}", "buildNamespaces[0] (a).readSecrets: without rbac.create"},
		"peers of no server":           {"networkPolicy: {gearmanFrom: [{ipBlock: {cidr: 192.0.2.0/24}}]}", "networkPolicy.gearmanFrom: that is for gearman.embedded.enabled and networkPolicy.enabled"},
		"peers of an open server":      {"{gearman: {embedded: {enabled: true}}, networkPolicy: {enabled: false, gearmanFrom: [{ipBlock: {cidr: 192.0.2.0/24}}]}}", "networkPolicy.gearmanFrom: that is for"},
		"a token for open metrics":     {"metrics: {secure: false, serviceMonitor: {enabled: true, tokenSecret: {name: a}}}", "metrics.serviceMonitor.tokenSecret: that is for"},
		"a token for nobody":           {"metrics: {serviceMonitor: {tokenSecret: {name: a}}}", "metrics.serviceMonitor.tokenSecret: that is for"},
		"no port of DNS":               {"networkPolicy: {dnsPorts: []}", "at '/networkPolicy/dnsPorts': minItems"},
		"a port open for Gearman":      {"{gearman: {servers: [{address: 'gearman.example.org:0443'}]}, networkPolicy: {apiServerCidrs: [192.0.2.1/32]}}", "networkPolicy.apiServerCidrs: port 443 is open to every host for gearman.servers"},
		"a port open for traces":       {"{tracing: {endpoint: 'https://collector.example.org'}, networkPolicy: {apiServerCidrs: [192.0.2.1/32]}}", "networkPolicy.apiServerCidrs: port 443 is open to every host for tracing.endpoint"},
		"a manager's long name":        {"manager: " + strings.Repeat("a", 120), "at '/manager': maxLength"},
		"a name with a dot":            {"nameOverride: zuul.build", "at '/nameOverride'"},
		"a full name with a dot":       {"fullnameOverride: zuul.build", "at '/fullnameOverride'"},
		"no name of a Service":         {"fullnameOverride: 2builds", "at '/fullnameOverride'"},
		"an ingress's address":         {"pages: {ingress: {enabled: true, host: 'https://builds.example.org'}}", "at '/pages/ingress/host'"},
		"an ingress's port":            {"pages: {ingress: {enabled: true, host: 'builds.example.org:8443'}}", "at '/pages/ingress/host'"},
		"a route's address":            {"pages: {httpRoute: {enabled: true, host: 'https://builds.example.org', parentRefs: [{name: a}]}}", "at '/pages/httpRoute/host'"},
		"a policy of no traffic":       {"pages: {service: {externalTrafficPolicy: Local}}", "pages.service.externalTrafficPolicy: that is for type NodePort or LoadBalancer"},
		"a class of no balancer":       {"pages: {service: {type: NodePort, loadBalancerClass: a}}", "pages.service.loadBalancerClass: that is for type LoadBalancer, not NodePort"},
		"ranges of no balancer":        {"gearman: {embedded: {enabled: true, service: {loadBalancerSourceRanges: [192.0.2.0/24]}}}", "gearman.embedded.service.loadBalancerSourceRanges: that is for type LoadBalancer, not ClusterIP"},
		"a collector's port":           {"tracing: {endpoint: 'http://collector:65536'}", "tracing.endpoint: a port from 1 to 65535 was expected, not 65536"},
		"a collector without a scheme": {"tracing: {endpoint: 'collector:4318'}", "at '/tracing/endpoint'"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			values := map[string]any{}
			if err := yaml.Unmarshal([]byte(test.values), &values); err != nil {
				t.Fatal(err)
			}
			if message := refusal(t, values); !strings.Contains(message, test.want) {
				t.Errorf("%s, without %q", message, test.want)
			}
		})
	}
}

// Every object of the schema says which keys it takes, and every value it knows is in values.yaml with its default.
func TestSchema(t *testing.T) {
	content, err := os.ReadFile(chartPath + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	schema := map[string]any{}
	if err := json.Unmarshal(content, &schema); err != nil {
		t.Fatal(err)
	}
	closed(t, schema, "")
	described(t, schema, defaults(t), "")
}

func closed(t *testing.T, schema map[string]any, path string) {
	t.Helper()
	if _, says := schema["additionalProperties"]; schema["type"] == "object" && !says {
		t.Errorf("%s takes any key", path)
	}
	for _, key := range []string{"properties", "$defs"} {
		children, _ := schema[key].(map[string]any)
		for name, child := range children {
			closed(t, child.(map[string]any), path+"/"+name)
		}
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if child, ok := schema[key].(map[string]any); ok {
			closed(t, child, path+"/"+key)
		}
	}
}

func described(t *testing.T, schema, values map[string]any, path string) {
	t.Helper()
	properties, _ := schema["properties"].(map[string]any)
	for name, property := range properties {
		value, there := values[name]
		if !there && path+name != "global" && path+name != "enabled" {
			t.Errorf("values.yaml lacks %s%s", path, name)
		}
		if child, ok := value.(map[string]any); ok {
			described(t, property.(map[string]any), child, path+name+".")
		}
	}
}
