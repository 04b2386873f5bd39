package chart

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/cert"
	"sigs.k8s.io/yaml"
)

// configurationText is the file of options that the operator of these objects is given.
func configurationText(t *testing.T, all []*unstructured.Unstructured) string {
	t.Helper()
	for _, object := range all {
		if text, _, _ := unstructured.NestedString(object.Object, "data", "zuulbuild.yaml"); text != "" {
			return text
		}
	}
	t.Fatal("there is no zuulbuild.yaml")
	return ""
}

func configurationOf(t *testing.T, all []*unstructured.Unstructured) map[string]any {
	t.Helper()
	options := map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(configurationText(t, all)), &options); err != nil {
		t.Fatal(err)
	}
	return options
}

// The program takes the arguments and the file of options that the chart and config/default give it: it gets as far as looking for a cluster.
func TestProgramTakesItsArguments(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds the program")
	}
	program := filepath.Join(t.TempDir(), "zuulbuild")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", program, "zuulbuild.dev/zuulbuild") // as make build does, which may have compiled it
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	sets := map[string][]*unstructured.Unstructured{"config/default": kustomized(t), "config/default with components": kustomized(t, components...)}
	for name := range valuesFiles {
		sets[name] = render(t, name)
	}
	for name, all := range sets {
		t.Run(name, func(t *testing.T) {
			folder, arguments := t.TempDir(), []string(nil)
			for _, object := range all {
				if object.GetKind() == "Deployment" && !strings.HasSuffix(object.GetName(), "-gearman") {
					deployment := appsv1.Deployment{}
					into(t, object.Object, &deployment)
					arguments = deployment.Spec.Template.Spec.Containers[0].Args
				}
			}
			certificate, key, err := cert.GenerateSelfSignedCertKey("zuulbuild-metrics", nil, nil)
			if err == nil {
				options := strings.ReplaceAll(configurationText(t, all), "/etc/zuulbuild", folder)
				err = errors.Join(os.Mkdir(filepath.Join(folder, "metrics"), 0o700), os.Mkdir(filepath.Join(folder, "config"), 0o700),
					os.WriteFile(filepath.Join(folder, "config/zuulbuild.yaml"), []byte(options), 0o600),
					os.WriteFile(filepath.Join(folder, "metrics/tls.crt"), certificate, 0o600), os.WriteFile(filepath.Join(folder, "metrics/tls.key"), key, 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
			for i := range arguments {
				arguments[i] = strings.ReplaceAll(arguments[i], "/etc/zuulbuild", folder)
			}
			if _, err := command(t, nil, program, arguments...); err == nil || !strings.Contains(err.Error(), "no cluster to work on") {
				t.Errorf("with %s: %v", strings.Join(arguments, " "), err)
			}
		})
	}
}

// Names of objects, and what else is made of several values.
func TestRenderedDetails(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		values []string
		want   []string // in the options, the image or the seconds of the operator
	}{
		"defaults":      {nil, []string{"zuulbuild.dev/zuulbuild:0.1.0", "pages-url: http://zuulbuild.zuulbuild-system.svc", "- zuulbuild-builds", "3660"}},
		"an address":    {[]string{"pages.url=https://a.example.org/ci", "pages.ingress.enabled=true", "pages.ingress.host=b"}, []string{"pages-url: https://a.example.org/ci"}},
		"plain ingress": {[]string{"pages.ingress.enabled=true", "pages.ingress.host=b"}, []string{"pages-url: http://b"}},
		"traces":        {[]string{"tracing.endpoint=http://collector:4318"}, []string{"trace-endpoint: http://collector:4318"}},
		"a short drain": {[]string{"drainTimeoutSeconds=5", "image.tag=x"}, []string{"drain-timeout: 5s", "65", ":x"}},
		"many builds":   {[]string{"maxBuilds=2000000"}, []string{"max-builds: 2000000"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			arguments := []string{}
			for _, value := range test.values {
				arguments = append(arguments, "--set", value)
			}
			all := render(t, "default", arguments...)
			deployment := appsv1.Deployment{}
			into(t, find(t, all, "Deployment", "zuulbuild").Object, &deployment)
			pod := deployment.Spec.Template.Spec
			told := fmt.Sprintf("%s%s\n%d\n", configurationText(t, all), pod.Containers[0].Image, *pod.TerminationGracePeriodSeconds)
			for _, want := range test.want {
				if !strings.Contains(told, want+"\n") {
					t.Errorf("no %q in\n%s", want, told)
				}
			}
		})
	}
}

// Pods are replaced for what they read at their start, and not for what they follow while they run.
func TestWhatReplacesPods(t *testing.T) {
	t.Parallel()
	pod := func(arguments ...string) corev1.PodTemplateSpec {
		deployment := appsv1.Deployment{}
		into(t, find(t, render(t, "default", arguments...), "Deployment", "zuulbuild").Object, &deployment)
		return deployment.Spec.Template
	}
	before := pod()
	for setting, replaces := range map[string]bool{
		"maxBuilds=300": false, "logLevel=debug": false, "buildNamespaces[0].keep=true": false,
		"manager=other": true, "gracePeriodSeconds=61": true, "gearman.servers[0].address=gearman.example.org": true, "pages.url=https://a.example.org": true,
	} {
		arguments := []string{"--set", setting}
		if strings.HasPrefix(setting, "buildNamespaces") {
			arguments = append(arguments, "--set", "buildNamespaces[0].name=zuulbuild-builds,buildNamespaces[0].create=true")
		}
		if after := pod(arguments...); cmp.Equal(before, after) == replaces {
			t.Errorf("%s replaces Pods: %v", setting, !replaces)
		}
	}
}

// The operator may speak to the collector of traces, at its port, and to none where there is none.
func TestCollectorIsReachable(t *testing.T) {
	t.Parallel()
	tests := map[string]int32{
		"": 0, "http://collector": 80, "https://collector/otlp": 443, "http://collector:4318": 4318, "http://[2001:db8::1]:4319/": 4319, "https://[2001:db8::1]": 443,
	}
	ports := func(endpoint string) []int32 {
		policy := networkingv1.NetworkPolicy{}
		into(t, find(t, render(t, "default", "--set", "tracing.endpoint="+endpoint), "NetworkPolicy", "zuulbuild").Object, &policy)
		var out []int32
		for _, rule := range policy.Spec.Egress {
			for _, port := range rule.Ports {
				out = append(out, port.Port.IntVal)
			}
		}
		return out
	}
	without := ports("")
	for endpoint, port := range tests {
		want := without
		if port != 0 {
			want = append(slices.Clone(without), port)
		}
		if diff := cmp.Diff(want, ports(endpoint)); diff != "" {
			t.Errorf("%q: ports of egress (-want +got):\n%s", endpoint, diff)
		}
	}
}
