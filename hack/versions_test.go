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
