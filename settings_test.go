package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"zuulbuild.dev/zuulbuild/hack/doctable"
)

// parse is the options of an operator started with arguments, and their flags.
func parse(t testing.TB, arguments ...string) (*operatorOptions, *pflag.FlagSet) {
	t.Helper()
	o := &operatorOptions{}
	flags := pflag.NewFlagSet("operator", pflag.ContinueOnError)
	o.addFlags(flags)
	must(t, flags.Parse(arguments))
	return o, flags
}

// writeFile returns the path of a file with a content.
func writeFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// TestPrecedence: each option, in all ways it can be given.
func TestPrecedence(t *testing.T) {
	_, options := parse(t)
	eachOption(options, func(option *pflag.Flag) {
		if option.Name == "config" {
			return
		}
		samples := map[string][]string{ // of the file, the environment and the command line
			"bool": {"true", "false", "true"}, "duration": {"1s", "2s", "3s"}, "int": {"1", "2", "3"}, "string": {"a", "b", "c"},
			"stringArray": {"[a]", "[b]", "[c]"},
		}[option.Value.Type()]
		for given := range 8 {
			var arguments, environ []string
			wantValue, wantSource := option.DefValue, fromDefault
			bare := func(sample string) string { return strings.Trim(sample, "[]") }
			if given&1 != 0 {
				arguments = append(arguments, "--config="+writeFile(t, "config.yaml", option.Name+": "+samples[0]))
				wantValue, wantSource = samples[0], fromFile
			}
			if given&2 != 0 {
				environ = append(environ, variable(option.Name)+"="+bare(samples[1]))
				wantValue, wantSource = samples[1], fromEnvironment
			}
			if given&4 != 0 {
				arguments = append(arguments, "--"+option.Name+"="+bare(samples[2]))
				wantValue, wantSource = samples[2], fromFlag
			}
			_, flags := parse(t, arguments...)
			s, warnings, faults := loadSettings(flags, environ)
			if len(warnings)+len(faults) > 0 {
				t.Errorf("%v %v: %v %v", arguments, environ, warnings, faults)
			}
			if value, source := flags.Lookup(option.Name).Value.String(), s.sources[option.Name]; value != wantValue || source != wantSource {
				t.Errorf("%v %v: %s is %s from %s, not %s from %s", arguments, environ, option.Name, value, source, wantValue, wantSource)
			}
		}
	})
}

func TestLists(t *testing.T) {
	file := writeFile(t, "config.yaml", "namespace: [a, b]\ngearman-server: []")
	o, flags := parse(t, "--gearman-server=c,d", "--gearman-server=e")
	_, _, faults := loadSettings(flags, []string{variable("config") + "=" + file})
	must(t, errors.Join(faults...))
	if diff := cmp.Diff([][]string{{"a", "b"}, {"c,d", "e"}}, [][]string{o.namespaces, o.gearmanServers}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	o, flags = parse(t)
	_, _, faults = loadSettings(flags, []string{variable("gearman-server") + "=zuul=a:1,b"})
	must(t, errors.Join(faults...))
	if diff := cmp.Diff([]string{"zuul=a:1", "b"}, o.gearmanServers); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestFileFaults: all that is wrong with a file is told, with its name and the key.
func TestFileFaults(t *testing.T) {
	const text = "a text (in quotes, if it looks like something else) was expected, not "
	for content, want := range map[string][]string{
		"":                                nil,
		"# max-builds: 1":                 nil,
		"{}":                              nil,
		"servers: [{address: a}]":         nil, // readServers looks into it
		"- max-builds: 1":                 {"FILE: options were expected, such as `max-builds: 100`, not [{\"max-builds\":1}]"},
		"max-builds":                      {"FILE: options were expected, such as `max-builds: 100`, not \"max-builds\""},
		"max-builds: [":                   {"FILE: yaml: line 1: did not find expected node content"},
		"max-builds: 1\nmax-builds: 2":    {"FILE: yaml: unmarshal errors:\n  line 2: key \"max-builds\" already set in map"},
		"maxBuilds: 1":                    {"FILE: maxBuilds: there is no such option; max-builds is one"},
		"max_builds: 1":                   {"FILE: max_builds: there is no such option; max-builds is one"},
		"help: true":                      {"FILE: help: there is no such option"},
		"config: a":                       {"FILE: config: one file cannot name another"},
		"max-builds:":                     {"FILE: max-builds: a whole number was expected, not null"},
		"max-builds: '1'":                 {"FILE: max-builds: a whole number was expected, not \"1\""},
		"max-builds: 1.5":                 {"FILE: max-builds: a whole number was expected, not \"1.5\""},
		"max-builds: 9223372036854775808": {"FILE: max-builds: a whole number was expected, not \"9223372036854775808\""},
		"drain-timeout: 60":               {"FILE: drain-timeout: a duration such as 90s or 1h30m was expected, not 60"},
		"drain-timeout: 1 hour":           {"FILE: drain-timeout: a duration such as 90s or 1h30m was expected, not \"1 hour\""},
		"leader-elect: 'no'":              {"FILE: leader-elect: true or false was expected, not \"no\""},
		"leader-elect: 0":                 {"FILE: leader-elect: true or false was expected, not 0"},
		"manager: yes":                    {"FILE: manager: " + text + "true"},
		"metrics-address: 0":              {"FILE: metrics-address: " + text + "0"},
		"manager: {name: a}":              {"FILE: manager: " + text + "{\"name\":\"a\"}"},
		"namespace: a":                    {"FILE: namespace: a list of texts was expected, not \"a\""},
		"namespace: [a, 1]":               {"FILE: namespace: a list of texts was expected, not [\"a\",1]"},
		"max-builds: a\nlog: b\nmanager: 1": {
			"FILE: log: there is no such option", "FILE: manager: " + text + "1", "FILE: max-builds: a whole number was expected, not \"a\"",
		},
	} {
		file := writeFile(t, "config.yaml", content)
		o, flags := parse(t, "--config", file)
		_, _, faults := loadSettings(flags, nil)
		var got []string
		for _, fault := range faults {
			got = append(got, strings.ReplaceAll(fault.Error(), file, "FILE"))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", content, diff)
		}
		untouched, _ := parse(t, "--config", file)
		if diff := cmp.Diff(*untouched, *o, cmp.AllowUnexported(operatorOptions{})); diff != "" {
			t.Errorf("%q changed (-before +after):\n%s", content, diff)
		}
	}
}

// TestOverriddenFileMustBeRight: a mistake does not lie in wait until a flag is taken away.
func TestOverriddenFileMustBeRight(t *testing.T) {
	o, flags := parse(t, "--max-builds=3", "--config", writeFile(t, "config.yaml", "max-builds: many"))
	if _, _, faults := loadSettings(flags, nil); len(faults) != 1 || o.maxBuilds != 3 {
		t.Errorf("%d builds, %v", o.maxBuilds, faults)
	}
}

func TestNoFile(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	_, flags := parse(t, "--config", missing)
	_, _, faults := loadSettings(flags, nil)
	checkError(t, "flag", errors.Join(faults...), "--config: open "+missing+": no such file")
	_, flags = parse(t)
	_, _, faults = loadSettings(flags, []string{"ZUULBUILD_OPERATOR_CONFIG=" + missing})
	checkError(t, "environment", errors.Join(faults...), "ZUULBUILD_OPERATOR_CONFIG: open "+missing+": no such file")
}

func TestEnvironment(t *testing.T) {
	for entry, want := range map[string]string{
		"ZUULBUILD_OPERATOR_MAX_BUILDS=7":          "",
		"ZUULBUILD_OPERATOR_MAX_BUILDS=":           "",
		"ZUULBUILD_OPERATOR_MAX_BUILDS=seven":      `fault: ZUULBUILD_OPERATOR_MAX_BUILDS: a whole number was expected, not "seven"`,
		"ZUULBUILD_OPERATOR_LEADER_ELECT=no":       `fault: ZUULBUILD_OPERATOR_LEADER_ELECT: true or false was expected, not "no"`,
		"ZUULBUILD_OPERATOR_GRACE_PERIOD=60":       `fault: ZUULBUILD_OPERATOR_GRACE_PERIOD: a duration such as 90s or 1h30m was expected, not "60"`,
		"ZUULBUILD_OPERATOR_MAXBUILDS=7":           "warning: the environment variable ZUULBUILD_OPERATOR_MAXBUILDS is of no option",
		"ZUULBUILD_OPERATOR_max_builds=7":          "warning: the environment variable ZUULBUILD_OPERATOR_max_builds is of no option",
		"ZUULBUILD_OPERATOR_HELP=1":                "warning: the environment variable ZUULBUILD_OPERATOR_HELP is of no option",
		"ZUULBUILD_E2E=1":                          "",
		"ZUULBUILD_PORT=tcp://10.0.0.1:80":         "",
		"ZUULBUILD_MAX_BUILDS=many":                "",
		"MAX_BUILDS=many":                          "",
		"ZUULBUILD_OPERATOR_SERVICE_HOST=10.0.0.1": "",
	} {
		_, flags := parse(t)
		_, warnings, faults := loadSettings(flags, []string{entry})
		var got []string
		for _, warning := range warnings {
			got = append(got, "warning: "+warning)
		}
		for _, fault := range faults {
			got = append(got, "fault: "+fault.Error())
		}
		if said := strings.Join(got, "\n"); said != want {
			t.Errorf("%s: got %q, want %q", entry, said, want)
		}
	}
}

// TestServiceLinks: whatever Services there are beside the operator, the variables Kubernetes makes of them do no harm and are not told of.
func TestServiceLinks(t *testing.T) {
	var environ []string
	for _, service := range []string{"ZUULBUILD", "ZUULBUILD_OPERATOR", "ZUULBUILD_OPERATOR_METRICS", "ZUULBUILD_OPERATOR_MAX_BUILDS"} {
		for _, link := range []string{"SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "SERVICE_PORT_HTTP_2", "PORT", "PORT_8080_TCP", "PORT_8080_TCP_PROTO",
			"PORT_8080_TCP_PORT", "PORT_8080_TCP_ADDR", "PORT_53_UDP_ADDR", "PORT_9_SCTP"} {
			environ = append(environ, service+"_"+link+"=tcp://10.0.0.1:8080")
		}
	}
	o, flags := parse(t)
	_, warnings, faults := loadSettings(flags, environ)
	if len(warnings)+len(faults) > 0 {
		t.Error(warnings, faults)
	}
	untouched, _ := parse(t)
	if diff := cmp.Diff(*untouched, *o, cmp.AllowUnexported(operatorOptions{})); diff != "" {
		t.Errorf("they changed (-before +after):\n%s", diff)
	}
	eachOption(flags, func(option *pflag.Flag) {
		if serviceLink.MatchString(variable(option.Name)) {
			t.Errorf("a Service could make %s", variable(option.Name))
		}
	})
}

// TestOptionsAreDocumented: docs/configuration.md has every option with all its names, its default and what its flag says of it.
func TestOptionsAreDocumented(t *testing.T) {
	var want, got [][]string
	_, options := parse(t)
	eachOption(options, func(option *pflag.Flag) {
		key, value := option.Name, option.DefValue
		if key == "config" {
			key = ""
		}
		if expected[option.Value.Type()] == "" {
			t.Errorf("nobody can be told what a %s is", option.Value.Type())
		}
		if value == "[]" {
			value = ""
		}
		want = append(want, []string{"--" + option.Name, variable(option.Name), key, value, option.Usage})
	})
	for _, row := range doctable.Rows(t, "configuration.md", "Options") {
		for i, cell := range row[:4] {
			if text, ok := doctable.Code(cell); ok {
				row[i] = text
			} else if cell != "" {
				t.Errorf("%q is not in backticks", cell)
			}
		}
		row[4] = strings.ReplaceAll(row[4], "`", "")
		got = append(got, row)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/configuration.md (-code +table):\n%s", diff)
	}
}

// TestExampleOfFile: the file that docs/configuration.md shows is right.
func TestExampleOfFile(t *testing.T) {
	text, err := os.ReadFile("docs/configuration.md")
	must(t, err)
	_, rest, _ := strings.Cut(string(text), "```yaml\n")
	example, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("there is none")
	}
	o, flags := parse(t, "--config", writeFile(t, "config.yaml", example))
	c := o.configure(flags, nil)
	must(t, allOf(c.faults))
	if fmt.Sprint(len(c.servers), o.namespaces, o.maxBuilds) != "1 [zuulbuild-builds] 200" {
		t.Errorf("%d servers, %v, %d builds", len(c.servers), o.namespaces, o.maxBuilds)
	}
}
