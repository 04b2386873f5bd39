package hack

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseVersions(t *testing.T) {
	tests := map[string]struct {
		text    string
		want    map[string]string
		wantErr string
	}{
		"comments and empty lines":   {text: "# tools\n\nA=v1\n  B_VERSION=v2.0.1\n", want: map[string]string{"A": "v1", "B_VERSION": "v2.0.1"}},
		"value may hold equal signs": {text: "A=b=c", want: map[string]string{"A": "b=c"}},
		"no value":                   {text: "A=\n", wantErr: "line 1: want NAME=VALUE"},
		"no name":                    {text: "=v1\n", wantErr: "line 1: want NAME=VALUE"},
		"no equal sign":              {text: "A=v1\nB\n", wantErr: "line 2: want NAME=VALUE"},
		"quotes":                     {text: `A="v1"`, wantErr: "not allowed"},
		"twice":                      {text: "A=v1\nA=v2\n", wantErr: "line 2: A is set twice"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseVersions(test.text)
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Fatalf("error %v, want one with %q", err, test.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("versions differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKubernetesVersion(t *testing.T) {
	versions := map[string]string{"OLDER_KUBERNETES_VERSIONS": "v1.9.3,v1.10.2", "KUBERNETES_VERSION": "v1.11.5"}
	tests := map[string]struct{ wanted, want, wantErr string }{
		"none":                       {wanted: "", want: "v1.11.5"},
		"the newest":                 {wanted: "1.11", want: "v1.11.5"},
		"an older one":               {wanted: "1.10", want: "v1.10.2"},
		"with a v":                   {wanted: "v1.10", want: "v1.10.2"},
		"one that begins another":    {wanted: "1.1", wantErr: "no release of Kubernetes 1.1: "},
		"a release that is listed":   {wanted: "1.10.2", want: "v1.10.2"},
		"a release that is not":      {wanted: "v1.10.1", want: "v1.10.1"},
		"a candidate":                {wanted: "1.12.0-rc.1", want: "v1.12.0-rc.1"},
		"a minor version not listed": {wanted: "v1.8", wantErr: "no release of Kubernetes 1.8: name one, as 1.8.0, or take one of v1.9.3, v1.10.2, v1.11.5"},
		"a folder":                   {wanted: "1.10.0/..", wantErr: "no version of Kubernetes"},
		"a word":                     {wanted: "newest", wantErr: "no version of Kubernetes"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := KubernetesVersion(versions, test.wanted)
			switch {
			case test.wantErr == "" && err != nil, test.wantErr != "" && (err == nil || !strings.Contains(err.Error(), test.wantErr)):
				t.Errorf("error %v, want %q", err, test.wantErr)
			case got != test.want:
				t.Errorf("%q means %q, want %q", test.wanted, got, test.want)
			}
		})
	}
}

// Kubernetes and etcd are pinned a second time in module files of their own; a bump must reach both places.
func TestVersionsAgreeWithToolModules(t *testing.T) {
	versions, err := Versions()
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct{ file, module string }{
		"KUBERNETES_VERSION": {"tools/kubernetes/go.mod", "k8s.io/kubernetes"},
		"ETCD_VERSION":       {"tools/etcd/go.mod", "go.etcd.io/etcd/server/v3"},
	}
	for name, test := range tests {
		text, err := os.ReadFile(test.file)
		if err != nil {
			t.Fatal(err)
		}
		match := regexp.MustCompile(`(?m)^\s+` + regexp.QuoteMeta(test.module) + ` (v\S+)`).FindSubmatch(text)
		if match == nil {
			t.Errorf("%s does not require %s", test.file, test.module)
		} else if got := string(match[1]); got != versions[name] {
			t.Errorf("%s requires %s %s, versions.env says %s=%s", test.file, test.module, got, name, versions[name])
		}
	}
}
