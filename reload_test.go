package main

import (
	"bytes"
	"log/slog"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"zuulbuild.dev/zuulbuild/hack/doctable"
)

// TestReload: what changes in the file of --config while the operator runs, and what does not.
func TestReload(t *testing.T) {
	const before = "max-builds: 5\nlog-level: info\ndrain-timeout: 30m\nservers: [{address: a.example.org}]\n"
	tests := map[string]struct {
		arguments, environ []string
		after              string // "" takes the file away
		applied            map[string]string
		said               []string
		invalid            bool
	}{
		"nothing": {after: before},
		"what can be applied": {
			after:   "max-builds: 7\nlog-level: debug\ndrain-timeout: 30m\nservers: [{address: a.example.org}]\n",
			applied: map[string]string{"max-builds": "7", "log-level": "debug"},
			said:    []string{"option=max-builds from=5 to=7", "option=log-level from=info to=debug"},
		},
		"back to a default": {
			after: "log-level: info\ndrain-timeout: 30m\nservers: [{address: a.example.org}]\n", applied: map[string]string{"max-builds": "100"},
			said: []string{"option=max-builds from=5 to=100"},
		},
		"what is read at the start": {
			after: "max-builds: 6\ndrain-timeout: 1h\nservers: [{address: b.example.org}]\n", applied: map[string]string{"max-builds": "6"},
			said: []string{"option=max-builds", "restart the operator", `options="drain-timeout, servers"`},
		},
		"a flag and a variable overrule": {
			arguments: []string{"--max-builds=9", "--namespace=a", "--namespace=b"}, environ: []string{variable("log-level") + "=warn"},
			after: "max-builds: 7\nlog-level: debug\ndrain-timeout: 30m\nservers: [{address: a.example.org}]\n",
		},
		"a fault beside a change": {
			after: "max-builds: 7\nlog-level: loud\nservers: [{address: a.example.org}]\n", said: []string{"level=ERROR", "loud", "not taken"}, invalid: true,
		},
		"gone": {said: []string{"level=ERROR", "no such file"}, invalid: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			file := writeFile(t, "zuulbuild.yaml", before)
			o, flags := parse(t, append(test.arguments, "--config="+file)...)
			running := o.configure(flags, test.environ)
			must(t, allOf(running.faults))
			applied, ending := map[string]string{}, false
			var said bytes.Buffer
			r, err := newReloader(running, test.environ, map[string]func(*operatorOptions){
				"max-builds": func(o *operatorOptions) { applied["max-builds"] = strconv.Itoa(o.maxBuilds) },
				"log-level":  func(o *operatorOptions) { applied["log-level"] = o.logLevel },
			}, func() bool { return ending }, slog.New(slog.NewTextHandler(&said, nil)), prometheus.NewPedanticRegistry())
			must(t, err)

			if test.after == "" {
				must(t, os.Remove(file))
			} else {
				must(t, os.WriteFile(file, []byte(test.after), 0o600))
			}
			for range 2 { // the second look finds nothing that is new
				r.look()
			}
			if !maps.Equal(test.applied, applied) {
				t.Errorf("applied (-want +got):\n%s", cmp.Diff(test.applied, applied))
			}
			for _, want := range test.said {
				if strings.Count(said.String(), want) != 1 {
					t.Errorf("said %d times %q:\n%s", strings.Count(said.String(), want), want, &said)
				}
			}
			if len(test.said) == 0 && said.Len() > 0 {
				t.Errorf("said %s", &said)
			}
			if valid := testutil.ToFloat64(r.valid); (valid == 0) != test.invalid {
				t.Errorf("zuulbuild_configuration_valid is %v", valid)
			}

			said.Reset()
			ending = true
			if r.look(); testutil.ToFloat64(r.valid) != 1 || said.Len() > 0 {
				t.Errorf("one that only ends what it has follows the file: %s", &said)
			}
			ending = false
			must(t, os.WriteFile(file, []byte(before), 0o600))
			if r.look(); testutil.ToFloat64(r.valid) != 1 {
				t.Errorf("still not valid: %s", &said)
			}
		})
	}
}

// TestMetricsAreDocumented: docs/metrics.md has the metric with its type, its labels, its help text and an example.
func TestMetricsAreDocumented(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	_, err := newReloader(nil, nil, nil, nil, nil, registry)
	must(t, err)
	families, err := registry.Gather()
	must(t, err)
	var want, got [][]string
	for _, family := range families {
		name := family.GetName()
		want = append(want, []string{"`" + name + "`", strings.ToLower(family.GetType().String()), "", family.GetHelp(), "`" + name + " == 0`"})
	}
	for _, row := range doctable.Rows(t, "metrics.md", "Metrics of the program") {
		row[3] = strings.ReplaceAll(row[3], "`", "")
		got = append(got, row)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/metrics.md (-code +table):\n%s", diff)
	}
}
