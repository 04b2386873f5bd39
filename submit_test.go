package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

const (
	submitPatience = 20 * time.Second
	startData      = `{"name":"j","number":7,"manager":"m","master":"m","url":"http://u/","full_url":"http://u/"}`
)

func endData(result string) []byte {
	return []byte(strings.TrimSuffix(startData, "}") + `,"result":"` + result + `"}`)
}

// checkGoroutines fails the test if it leaves a goroutine behind.
func checkGoroutines(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// output is a buffer that can be read while a command writes to it.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// submitted is a run of `zuulbuild submit`.
type submitted struct {
	in          string
	out, errors output
	err         error
}

// run runs the command and returns its exit code.
func (s *submitted) run(t *testing.T, arguments ...string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), submitPatience)
	defer cancel()
	command := newSubmitCommand()
	command.SilenceErrors, command.SilenceUsage = true, true
	command.SetArgs(arguments)
	command.SetIn(strings.NewReader(s.in))
	command.SetOut(&s.out)
	command.SetErr(&s.errors)
	s.err = command.ExecuteContext(ctx)
	if s.err == nil {
		return 0
	}
	var exit exitError
	if !errors.As(s.err, &exit) {
		t.Fatalf("an error without an exit code: %v", s.err)
	}
	return exit.ExitCode()
}

// buildScript is what a worker does with a build. A stop: job comes on stops.
type buildScript func(t *testing.T, build *gearman.Job, stops <-chan *gearman.Job)

// startScriptedWorker offers build:j, build:j:n and stop:m. Without a script it
// takes no job.
func startScriptedWorker(t *testing.T, address string, script buildScript) {
	t.Helper()
	stops := make(chan *gearman.Job, 10)
	connected := make(chan struct{}, 10)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	worker := &gearman.Worker{
		Address:   address,
		Free:      func() bool { return script != nil },
		Connected: func() { connected <- struct{}{} },
		Assigned: func(job *gearman.Job) {
			if job.Function == "stop:m" {
				stops <- job
				return
			}
			running.Go(func() { script(t, job, stops) })
		},
	}
	must(t, worker.SetFunctions([]string{"build:j", "build:j:n", "stop:m"}))
	running.Go(func() { _ = worker.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	select {
	case <-connected:
	case <-time.After(submitPatience):
		t.Fatal("the worker does not connect")
	}
	registered(t, address)
}

// registered waits until the server knows the worker's functions.
func registered(t *testing.T, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), submitPatience)
	defer cancel()
	admin, err := gearman.DialAdmin(ctx, address, nil)
	must(t, err)
	defer func() { _ = admin.Close() }()
	gearmantest.Eventually(t, submitPatience, "the functions of the worker", func() bool {
		functions, err := admin.Status(ctx)
		must(t, err)
		return len(functions) == 3
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// try is must for scripts, which run on goroutines of their own.
func try(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func completes(data string) buildScript {
	return func(t *testing.T, build *gearman.Job, _ <-chan *gearman.Job) {
		try(t, build.Data([]byte(startData)), build.Status(0, 60000), build.Complete([]byte(data)))
	}
}

func TestSubmitExitCodes(t *testing.T) {
	for name, test := range map[string]struct {
		script    buildScript
		code      int
		out, errs string // parts of standard output and error
	}{
		"success": {completes(string(endData("SUCCESS"))), 0, "SUCCESS  build:j  number 7  in ", "started as number 7, manager m\nurl http://u/\n"},
		"failure": {completes(string(endData("FAILURE"))), 1, "FAILURE  build:j", "estimated to take 1m0s"},
		"no result": {func(t *testing.T, build *gearman.Job, _ <-chan *gearman.Job) {
			try(t, build.Data([]byte(startData)), build.Fail())
		}, 3, "NO RESULT (Zuul would retry)", ""},
		"failed at once": {func(t *testing.T, build *gearman.Job, _ <-chan *gearman.Job) { try(t, build.Fail()) },
			3, "NO RESULT (Zuul would retry)  build:j\n", ""},
		"empty result":       {completes(string(endData(""))), 5, "NO END", "the worker breaks the protocol (result)"},
		"final is no JSON":   {completes("done\x1b[2J"), 5, "NO END", "the worker breaks the protocol (json)"},
		"number changes":     {completes(`{"number":8,"result":"SUCCESS"}`), 0, "number 7", "the worker breaks the protocol (number)"},
		"the last data wins": {completes(`{"result":"UNSTABLE"}`), 1, "UNSTABLE", ""},
	} {
		for _, behaviour := range []gearman.Behaviour{gearman.Gearmand, gearman.Geard} {
			t.Run(name+" on "+behaviour.String(), func(t *testing.T) {
				checkGoroutines(t)
				address, _ := gearmantest.StartServer(t, behaviour)
				startScriptedWorker(t, address, test.script)
				var s submitted
				if code := s.run(t, "j", "--gearman", address); code != test.code {
					t.Errorf("exit code: got %d, want %d (%v)", code, test.code, s.err)
				}
				if got := s.out.String(); !strings.Contains(got, test.out) || strings.Count(got, "\n") != 1 {
					t.Errorf("output: got %q, want a line with %q", got, test.out)
				}
				if got := s.errors.String(); !strings.Contains(got, test.errs) || strings.Contains(got, "\x1b") {
					t.Errorf("standard error: got %q, want %q in it and no control characters", got, test.errs)
				}
			})
		}
	}
}

func TestSubmitUsage(t *testing.T) {
	directory := t.TempDir()
	file := func(name, content string) string {
		name = filepath.Join(directory, name)
		must(t, os.WriteFile(name, []byte(content), 0o600))
		return name
	}
	for name, test := range map[string]struct {
		arguments []string
		message   string
	}{
		"no job":                {nil, "name of one JOB, not 0"},
		"two jobs":              {[]string{"a", "b"}, "not 2"},
		"unknown flag":          {[]string{"j", "--nonsense"}, "unknown flag: --nonsense; see"},
		"job with a blank":      {[]string{"a b"}, "JOB and --node"},
		"uuid too long":         {[]string{"j", "--uuid", strings.Repeat("u", 65)}, "--uuid"},
		"dialect":               {[]string{"j", "--dialect", "zuul3"}, "--dialect"},
		"output":                {[]string{"j", "--output", "xml"}, `--output "xml"`},
		"precedence":            {[]string{"j", "--precedence", "top"}, `--precedence "top"`},
		"negative time":         {[]string{"j", "--timeout", "-1s"}, "cannot be negative"},
		"no time":               {[]string{"j", "--stop-after", "soon"}, "--stop-after"},
		"parameter without =":   {[]string{"j", "-p", "A"}, `--parameter "A"`},
		"parameter without key": {[]string{"j", "-p", "=A"}, "KEY=VALUE"},
		"ZUUL_NODE":             {[]string{"j", "-p", "ZUUL_NODE=n"}, "use --node"},
		"no file":               {[]string{"j", "--parameters-file", filepath.Join(directory, "none")}, "--parameters-file"},
		"array":                 {[]string{"j", "--parameters-file", file("array", "[]")}, "JSON object"},
		"null":                  {[]string{"j", "--parameters-file", file("null", "null")}, "JSON object"},
		"two objects":           {[]string{"j", "--parameters-file", file("two", "{} {}")}, "one JSON object"},
		"no certificate":        {[]string{"j", "--tls-ca", file("ca", "nothing")}, "no PEM certificate"},
		"certificate alone":     {[]string{"j", "--tls-cert", "c"}, "go together"},
		"no key":                {[]string{"j", "--tls-cert", "c", "--tls-key", "k"}, "client certificate c with key k"},
	} {
		t.Run(name, func(t *testing.T) {
			var s submitted
			if code := s.run(t, test.arguments...); code != 2 {
				t.Errorf("exit code: got %d, want 2", code)
			}
			if s.err == nil || !strings.Contains(s.err.Error(), test.message) {
				t.Errorf("got %v, want %q in it", s.err, test.message)
			}
		})
	}
}

func TestSubmitNotRegistered(t *testing.T) {
	checkGoroutines(t)
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	for _, test := range []struct {
		job, message string
		prepare      func()
	}{
		{"j", "no job at all is offered", func() {}},
		{"other", "knows build:j, build:j:n", func() { startScriptedWorker(t, address, completes("{}")) }},
		{"j:o", "knows build:j, build:j:n", func() {}},
	} {
		test.prepare()
		var s submitted
		if code := s.run(t, test.job, "--gearman", address, "--no-wait-registered", "--output", "json"); code != 4 {
			t.Errorf("%s: exit code %d, want 4", test.job, code)
		}
		if s.err == nil || !strings.Contains(s.err.Error(), test.message) {
			t.Errorf("%s: got %v, want %q in it", test.job, s.err, test.message)
		}
		var report struct{ ExitCode int }
		must(t, json.Unmarshal([]byte(s.out.String()), &report))
		if report.ExitCode != 4 {
			t.Errorf("%s: exit code %d in the report, want 4", test.job, report.ExitCode)
		}
	}
}

func TestSubmitWaitsForRegistration(t *testing.T) {
	checkGoroutines(t)
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	var s submitted
	code := make(chan int, 1)
	go func() { code <- s.run(t, "j", "--gearman", address) }()
	gearmantest.Eventually(t, submitPatience, "it wait", func() bool {
		return strings.Contains(s.errors.String(), "waiting for a worker to register build:j")
	})
	startScriptedWorker(t, address, completes(string(endData("SUCCESS"))))
	if got := <-code; got != 0 {
		t.Errorf("exit code: got %d, want 0 (%v)", got, s.err)
	}
}

func TestSubmitTrouble(t *testing.T) {
	checkGoroutines(t)
	address, server := gearmantest.StartServer(t, gearman.Geard)
	var begun, refused submitted
	startScriptedWorker(t, address, func(t *testing.T, build *gearman.Job, _ <-chan *gearman.Job) {
		try(t, build.Data([]byte(startData)))
		gearmantest.Eventually(t, submitPatience, "the start of the build", func() bool { return strings.Contains(begun.errors.String(), "http://u/") })
		_ = server.Close()
	})
	for _, test := range []struct {
		*submitted
		want string
	}{{&begun, "lost sight of build"}, {&refused, "cannot reach the Gearman server at " + address}} {
		if code := test.run(t, "j", "--gearman", address); code != 5 {
			t.Errorf("exit code: got %d, want 5", code)
		}
		if test.err == nil || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("got %v, want %q in it", test.err, test.want)
		}
	}
}

// awaitStop returns the stop: job, or the build itself once that cannot come.
func awaitStop(build *gearman.Job, stops <-chan *gearman.Job) *gearman.Job {
	select {
	case stop := <-stops:
		return stop
	case <-build.Done():
		return build
	}
}

// stopped ends the build when it is stopped, after a check of the stop: job.
func stopped(uuid, argument string) buildScript {
	return func(t *testing.T, build *gearman.Job, stops <-chan *gearman.Job) {
		if build.Unique != uuid {
			t.Errorf("unique: got %q, want %q", build.Unique, uuid)
		}
		try(t, build.Data([]byte(startData)))
		stop := awaitStop(build, stops)
		if string(stop.Payload) != argument {
			t.Errorf("argument of stop:m: got %s, want %s", stop.Payload, argument)
		}
		try(t, stop.Complete(nil), build.Complete(endData("ABORTED")))
	}
}

func TestSubmitStopAfter(t *testing.T) {
	for dialect, argument := range map[string]string{"zuul2": `{"name":"j","number":7}`, "branch": "u"} {
		for _, behaviour := range []gearman.Behaviour{gearman.Gearmand, gearman.Geard} {
			t.Run(dialect+" on "+behaviour.String(), func(t *testing.T) {
				checkGoroutines(t)
				address, _ := gearmantest.StartServer(t, behaviour)
				startScriptedWorker(t, address, stopped("u", argument))
				var s submitted
				code := s.run(t, "j", "--gearman", address, "--uuid", "u", "--dialect", dialect, "--stop-after", "0s")
				if code != 1 || !strings.HasPrefix(s.out.String(), "CANCELED (ABORTED)  build:j  number 7") {
					t.Errorf("got %d, %q, %v; want 1 and CANCELED", code, s.out.String(), s.err)
				}
			})
		}
	}
}

func TestSubmitTimeout(t *testing.T) {
	for name, script := range map[string]buildScript{
		"queued": nil,
		"running": func(t *testing.T, build *gearman.Job, stops <-chan *gearman.Job) {
			try(t, build.Data([]byte(startData)), awaitStop(build, stops).Complete(nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			address, _ := gearmantest.StartServer(t, gearman.Geard)
			startScriptedWorker(t, address, script)
			var s submitted
			if code := s.run(t, "j", "--gearman", address, "--timeout", "5s"); code != 124 {
				t.Errorf("exit code: got %d, want 124 (%v)", code, s.err)
			}
			if name == "queued" && !strings.HasPrefix(s.out.String(), "CANCELED  build:j\n") {
				t.Errorf("output: got %q", s.out.String())
			}
		})
	}
}

// interrupt is what Ctrl-C does, when the command under test has told of the build's start. Before that, the submission itself would be interrupted.
func (s *submitted) interrupt(t *testing.T) {
	gearmantest.Eventually(t, submitPatience, "the start of the build", func() bool { return strings.Contains(s.errors.String(), "http://u/") })
	try(t, syscall.Kill(os.Getpid(), syscall.SIGINT))
}

func TestSubmitInterrupted(t *testing.T) {
	for name, test := range map[string]struct {
		script func(s *submitted, t *testing.T, build *gearman.Job, stops <-chan *gearman.Job)
		code   int
	}{
		"once": {func(s *submitted, t *testing.T, build *gearman.Job, stops <-chan *gearman.Job) {
			try(t, build.Data([]byte(startData)))
			s.interrupt(t)
			try(t, awaitStop(build, stops).Complete(nil), build.Complete(endData("ABORTED")))
		}, 1},
		"twice": {func(s *submitted, t *testing.T, build *gearman.Job, stops <-chan *gearman.Job) {
			try(t, build.Data([]byte(startData)))
			s.interrupt(t)
			awaitStop(build, stops)
			s.interrupt(t)
		}, 130},
		"once, and the worker refuses": {func(s *submitted, t *testing.T, build *gearman.Job, stops <-chan *gearman.Job) {
			try(t, build.Data([]byte(startData)))
			s.interrupt(t)
			try(t, awaitStop(build, stops).Fail())
		}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			address, _ := gearmantest.StartServer(t, gearman.Geard)
			var s submitted
			startScriptedWorker(t, address, func(t *testing.T, build *gearman.Job, stops <-chan *gearman.Job) { test.script(&s, t, build, stops) })
			if code := s.run(t, "j", "--gearman", address); code != test.code {
				t.Errorf("exit code: got %d, want %d (%v)", code, test.code, s.err)
			}
		})
	}
}

func TestSubmitParameters(t *testing.T) {
	file := filepath.Join(t.TempDir(), "build.json")
	must(t, os.WriteFile(file, []byte(`{"A":12345678901234567890,"B":"file","C":null,"ZUUL_UUID":"old","ZUUL_CHANGE":"1"}`), 0o600))
	for name, test := range map[string]struct {
		in, function, payload string
		arguments             []string
	}{
		"none": {function: "build:j", payload: `{"ZUUL_UUID":"u"}`},
		"file": {function: "build:j", arguments: []string{"--parameters-file", file, "-p", "B=flag=b", "--change", "2"},
			payload: `{"A":12345678901234567890,"B":"flag=b","C":null,"ZUUL_CHANGE":"2","ZUUL_UUID":"u"}`},
		"standard input": {in: `{"A":[1]}`, function: "build:j", arguments: []string{"--parameters-file", "-"},
			payload: `{"A":[1],"ZUUL_UUID":"u"}`},
		"node": {function: "build:j:n", arguments: []string{"--node", "n"}, payload: `{"ZUUL_NODE":"n","ZUUL_UUID":"u"}`},
		"change": {function: "build:j", arguments: []string{"--change", "1234", "--patchset", "5", "--project", "p", "--branch", "b"},
			payload: `{"ZUUL_BRANCH":"b","ZUUL_CHANGE":"1234","ZUUL_CHANGES":"p:b:refs/changes/34/1234/5","ZUUL_CHANGE_IDS":"1234,5",` +
				`"ZUUL_PATCHSET":"5","ZUUL_PROJECT":"p","ZUUL_UUID":"u"}`},
	} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			address, _ := gearmantest.StartServer(t, gearman.Gearmand)
			builds := make(chan *gearman.Job, 1)
			startScriptedWorker(t, address, func(t *testing.T, build *gearman.Job, stops <-chan *gearman.Job) {
				builds <- build
				completes(string(endData("SUCCESS")))(t, build, stops)
			})
			t.Setenv("GEARMAN", address)
			s := submitted{in: test.in}
			if code := s.run(t, append([]string{"j", "--uuid", "u", "--quiet"}, test.arguments...)...); code != 0 {
				t.Fatalf("exit code %d: %v", code, s.err)
			}
			build := <-builds
			if build.Function != test.function || string(build.Payload) != test.payload {
				t.Errorf("got  %s %s\nwant %s %s", build.Function, build.Payload, test.function, test.payload)
			}
			if s.errors.String() != "" {
				t.Errorf("--quiet shows %q", s.errors.String())
			}
		})
	}
}

func TestSubmitJSON(t *testing.T) {
	checkGoroutines(t)
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	startScriptedWorker(t, address, completes(`{"result":"FAILURE","node_name":"n1"}`))
	var s submitted
	if code := s.run(t, "j", "--gearman", address, "--uuid", "u", "-p", "A=<b>", "-o", "json"); code != 1 {
		t.Errorf("exit code: got %d, want 1", code)
	}
	type packet struct{ Type string }
	type report struct {
		Server, Dialect, UUID, Function, Outcome, Result, Manager, URL, NodeName, Error string
		Number, ExitCode                                                                int
		EstimatedSeconds                                                                float64
		Parameters                                                                      map[string]string
		Violations                                                                      []string
		Packets                                                                         []packet
	}
	var got report
	must(t, json.NewDecoder(bytes.NewReader([]byte(s.out.String()))).Decode(&got))
	want := report{
		Server: address, Dialect: "zuul2", UUID: "u", Function: "build:j", Outcome: "decided", Result: "FAILURE",
		Manager: "m", URL: "http://u/", NodeName: "n1", Error: "build u of j ended with FAILURE", Number: 7, ExitCode: 1,
		EstimatedSeconds: 60, Parameters: map[string]string{"A": "<b>"}, Violations: []string{},
		Packets: []packet{{"WORK_DATA"}, {"WORK_STATUS"}, {"WORK_COMPLETE"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
