package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

// TestBadValues: each stops the start with a sentence that names what and where.
func TestBadValues(t *testing.T) {
	noKubeconfig, missing := writeFile(t, "kubeconfig", "apiVersion: v1\nkind: Pod"), filepath.Join(t.TempDir(), "none")
	for _, test := range []struct{ argument, want string }{
		{"--max-builds=0", "--max-builds: 1 or more was expected, not 0"},
		{"--grace-period=-1s", "--grace-period: 0s or more was expected, not -1s"},
		{"--drain-timeout=-1m", "--drain-timeout: 0s or more was expected, not -1m0s"},
		{"--health-address=8081", `--health-address: [HOST]:PORT was expected, or 0 for nowhere, not "8081"`},
		{"--metrics-address=:metrics", `--metrics-address: [HOST]:PORT was expected, or 0 for nowhere, not ":metrics"`},
		{"--metrics-address=", `--metrics-address: [HOST]:PORT was expected, or 0 for nowhere, not ""`},
		{"--metrics-cert-dir=" + t.TempDir(), "--metrics-cert-dir: a certificate is of no use without --metrics-secure"},
		{"--pages-address=0", `--pages-address: [HOST]:PORT was expected, not "0"`},
		{"--pages-address=:65536", `--pages-address: [HOST]:PORT was expected, not ":65536"`},
		{"--pages-address=[::1]:0", ""},
		{"--health-address=0", ""},
		{"--pages-url=builds.example.org", `--pages-url: an address such as https://builds.example.org was expected, not "builds.example.org"`},
		{"--pages-url=ftp://builds.example.org", "--pages-url: an address such as"},
		{"--log-level=verbose", `--log-level: debug, info, warn or error was expected, not "verbose"`},
		{"--manager=", `--manager: 1 to 119 printable ASCII characters were expected, without blanks and colons, not ""`},
		{"--manager=a b", "--manager: 1 to 119"},
		{"--manager=a:b", "--manager: 1 to 119"},
		{"--manager=" + strings.Repeat("a", 120), "--manager: 1 to 119"},
		{"--manager=" + strings.Repeat("a", 119), ""},
		{"--namespace=Builds", `--namespace: "Builds" cannot be a namespace: `},
		{"--leader-lease=900ms", "--leader-lease: 1s to 15s was expected, not 900ms"},
		{"--leader-lease=16s", "--leader-lease: 1s to 15s was expected, not 16s"},
		{"--leader-lease=15s", ""},
		{"--trace-endpoint=collector:4318", "--trace-endpoint: an address such as http://collector.example.org:4318 was expected, not \"collector:4318\""},
		{"--trace-endpoint=http://collector:65536", `--trace-endpoint: a port from 1 to 65535 was expected, not "65536"`},
		{"--trace-endpoint=http://collector:0", `--trace-endpoint: a port from 1 to 65535 was expected, not "0"`},
		{"--trace-endpoint=http://[2001:db8::1]:65535/otlp", ""},
		{"--trace-endpoint=https://collector.example.org", ""},
		{"--leader-deployment=A", `--leader-deployment: "A" cannot be the name of a Deployment: `},
		{"--leader-namespace=a.b", `--leader-namespace: "a.b" cannot be a namespace: `},
		{"--kubeconfig=" + noKubeconfig, "--kubeconfig: " + noKubeconfig + ": "},
		{"--kubeconfig=" + missing, "--kubeconfig: open " + missing},
		{"--gearman-server=a:0", `--gearman-server "a:0": address: HOST[:PORT] was expected`},
		{"--config=" + writeFile(t, "config.yaml", "max-builds: -1"), "config.yaml: max-builds: 1 or more was expected, not -1"},
		{"--config=" + writeFile(t, "config.yaml", "servers: [{name: a}]"), "config.yaml: servers[0].address: HOST[:PORT] was expected"},
	} {
		o, flags := parse(t, test.argument)
		checkError(t, test.argument, allOf(o.configure(flags, nil).faults), test.want)
		command := newOperatorCommand()
		command.SilenceUsage, command.SilenceErrors = true, true
		command.SetArgs([]string{test.argument})
		if test.want != "" {
			checkError(t, "operator "+test.argument, command.ExecuteContext(t.Context()), test.want)
		}
	}
	empty := t.TempDir()
	o, flags := parse(t, "--metrics-secure", "--metrics-cert-dir="+empty)
	checkError(t, "no certificate", allOf(o.configure(flags, nil).faults), "--metrics-cert-dir: a certificate and its key were expected in "+empty+" as tls.crt and tls.key: open ")
	o, flags = parse(t)
	checkError(t, "environment", allOf(o.configure(flags, []string{"ZUULBUILD_OPERATOR_MAX_BUILDS=0"}).faults), "ZUULBUILD_OPERATOR_MAX_BUILDS: 1 or more was expected, not 0")
}

// TestProblemsAreOfOptions: a fault names an option there is.
func TestProblemsAreOfOptions(t *testing.T) {
	o, flags := parse(t)
	for option, problem := range o.problems() {
		if flags.Lookup(option) == nil {
			t.Errorf("there is no --%s", option)
		}
		if problem != nil {
			t.Errorf("the default of --%s: %v", option, problem)
		}
	}
}

// check runs `zuulbuild config check` in an environment without options, but for those given as NAME=VALUE before the arguments.
func check(t *testing.T, arguments ...string) (output, warnings string, err error) {
	t.Helper()
	_, options := parse(t)
	eachOption(options, func(option *pflag.Flag) { t.Setenv(variable(option.Name), "") })
	for len(arguments) > 0 && strings.HasPrefix(arguments[0], environmentPrefix) {
		name, value, _ := strings.Cut(arguments[0], "=")
		t.Setenv(name, value)
		arguments = arguments[1:]
	}
	var out, trouble bytes.Buffer
	command := newConfigCommand()
	command.SilenceUsage, command.SilenceErrors = true, true
	command.SetArgs(append([]string{"check"}, arguments...))
	command.SetOut(&out)
	command.SetErr(&trouble)
	err = command.ExecuteContext(t.Context())
	return out.String(), trouble.String(), err
}

func TestConfigCheck(t *testing.T) {
	authority := gearmantest.NewAuthority(t)
	files := authority.WriteFiles(t.TempDir(), authority.Sign("client", nil))
	file := writeFile(t, "config.yaml", `
max-builds: 200
namespace: [check, gate]
pages-url: https://builds.example.org
servers:
- {name: zuul, address: gearman.example.org, tls: {caFile: `+files.CAFile+`, certFile: `+files.CertFile+`, keyFile: `+files.KeyFile+`}}
`)
	output, warnings, err := check(t, "ZUULBUILD_OPERATOR_PAGES_URL=https://ci.example.org", "ZUULBUILD_OPERATOR_PAGES=1",
		"--config="+file, "--gearman-server=localhost:4731", "--log-level=debug")
	must(t, err)
	if want := "warning: the environment variable ZUULBUILD_OPERATOR_PAGES is of no option\n"; warnings != want {
		t.Errorf("warnings %q, want %q", warnings, want)
	}
	var got []string
	for line := range strings.Lines(strings.ReplaceAll(output, file, "FILE")) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"OPTION VALUE FROM",
		"config FILE flag",
		"drain-timeout 1h0m0s default",
		"gearman-server localhost:4731 flag",
		`gearman-servers "" default`,
		"grace-period 1m0s default",
		"health-address :8081 default",
		`kubeconfig "" default`,
		`leader-deployment "" default`,
		"leader-elect true default",
		"leader-lease 3s default",
		`leader-namespace "" default`,
		"log-level debug flag",
		"manager zuulbuild default",
		"max-builds 200 file",
		"metrics-address 0 default",
		"metrics-by-job false default",
		`metrics-cert-dir "" default`,
		"metrics-secure false default",
		"namespace check,gate file",
		"pages-address :8080 default",
		"pages-url https://ci.example.org environment",
		`trace-endpoint "" default`,
		"",
		"GEARMAN SERVER ADDRESS TLS",
		"localhost-4731 localhost:4731 no",
		"zuul gearman.example.org:4730 yes",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestConfigCheckFaults: all of them are told, and what is in force is printed still.
func TestConfigCheckFaults(t *testing.T) {
	authority := gearmantest.NewAuthority(t)
	files := authority.WriteFiles(t.TempDir(), authority.Sign("client", nil))
	must(t, os.WriteFile(files.KeyFile, []byte("none"), 0o600))
	file := writeFile(t, "config.yaml", `
maxBuilds: 200
drain-timeout: 60
pages-url: builds.example.org
servers:
- {name: gone, address: a, tls: {caFile: /nonexistent/ca.crt}}
- {name: broken, address: b, tls: {certFile: `+files.CertFile+`, keyFile: `+files.KeyFile+`}}
- {name: none}
`)
	output, _, err := check(t, "ZUULBUILD_OPERATOR_MAX_BUILDS=0", "--config="+file, "--log-level=all")
	if err == nil {
		t.Fatal("it found nothing")
	}
	got := strings.Split(strings.NewReplacer(file, "FILE", files.CertFile, "CERT", files.KeyFile, "KEY").Replace(err.Error()), "\n")
	want := []string{
		"8 faults in the configuration:",
		"FILE: drain-timeout: a duration such as 90s or 1h30m was expected, not 60",
		"FILE: maxBuilds: there is no such option; max-builds is one",
		`--log-level: debug, info, warn or error was expected, not "all"`,
		"ZUULBUILD_OPERATOR_MAX_BUILDS: 1 or more was expected, not 0",
		`FILE: pages-url: an address such as https://builds.example.org was expected, not "builds.example.org"`,
		`FILE: servers[2].address: HOST[:PORT] was expected, with an IPv6 address in brackets and a port from 1 to 65535, not ""`,
		"server gone (a:4730): tls: certificates of authorities: open /nonexistent/ca.crt: no such file or directory",
		"server broken (b:4730): tls: client certificate CERT with key KEY: tls: failed to find any PEM data in key input",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !strings.Contains(output, "max-builds") || !strings.Contains(output, "broken") {
		t.Errorf("the output is\n%s", output)
	}
}
