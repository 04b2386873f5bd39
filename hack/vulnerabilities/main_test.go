package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// said is what govulncheck says of a vulnerability, and of findings of it: in a module that is required, a package that is imported, a function that is called.
const said = `{"config":{"protocol_version":"v1.0.0"}}
{"osv":{"id":"GO-1","summary":"first"}}
{"osv":{"id":"GO-2","summary":"second"}}
{"finding":{"osv":"GO-1","fixed_version":"v1.2.0","trace":[{"module":"example.org/a","version":"v1.1.0"}]}}
{"finding":{"osv":"GO-1","fixed_version":"v1.2.0","trace":[{"module":"example.org/a","version":"v1.1.0","package":"example.org/a"}]}}
`

const (
	called   = `{"finding":{"osv":"GO-1","fixed_version":"v1.2.0","trace":[{"module":"example.org/a","version":"v1.1.0","function":"F"},{"module":"ours","function":"main"}]}}`
	standard = `{"finding":{"osv":"GO-2","trace":[{"module":"stdlib","version":"v1.26.8","function":"F"}]}}`
)

func TestVulnerabilities(t *testing.T) {
	for name, test := range map[string]struct {
		output string
		said   string
		fails  bool
	}{
		"none is reached": {output: said},
		"one of a module, by two ways": {said + called + called,
			"GO-1: first: in example.org/a v1.1.0; mended in v1.2.0\n", true},
		"one of Go": {said + standard, "warning: GO-2: second: in the Go of this machine, v1.26.8; no version without it is known\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			found, err := read(strings.NewReader(test.output))
			if err != nil {
				t.Fatal(err)
			}
			var told strings.Builder
			if err := judge(&told, found); (err != nil) != test.fails {
				t.Errorf("fails with %v", err)
			}
			if diff := cmp.Diff(test.said, told.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if _, err := read(strings.NewReader(said + `{"finding":`)); err == nil {
		t.Error("what was cut off passes")
	}
}

func TestNothingChecked(t *testing.T) {
	if err := run("false", ""); err == nil || !strings.Contains(err.Error(), "nothing was checked") {
		t.Errorf("a govulncheck that fails: %v", err)
	}
}
