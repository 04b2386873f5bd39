package main

import (
	"bytes"
	"strings"
	"testing"

	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

// TestNames: as a plugin of kubectl the program is called as one, and has no commands but those for a cluster's users.
func TestNames(t *testing.T) {
	for path, test := range map[string]struct{ has, hasNot string }{
		"/usr/bin/zuulbuild":                   {"zuulbuild operator", "kubectl zuulbuild"},
		"/home/person/.krew/kubectl-zuulbuild": {"kubectl zuulbuild abort", "zuulbuild operator"},
	} {
		var usage strings.Builder
		root := newRootCommand(path)
		for _, command := range root.Commands() {
			usage.WriteString(command.UseLine() + "\n")
		}
		var help bytes.Buffer
		root.SetOut(&help)
		root.SetArgs([]string{"--help"})
		must(t, root.Execute())
		if got := usage.String() + help.String(); !strings.Contains(got, test.has) || strings.Contains(got, test.hasNot) {
			t.Errorf("%s tells of %s; want %q in it and not %q", path, got, test.has, test.hasNot)
		}
	}
}
