//go:build linux

// Package conformance tests the contract of Zuul v2 and its Gearman worker: one test for each case of section 7 of the contract, named after it.
// What is tested is the real program, with a real API server, before the real gearmand with various flags and before the embedded server that
// behaves like geard. Zuul is played by zuulclient, which understands packets exactly as Zuul does; scheduler and kubelet are played by kubelet_test.go.
//
//	go test -run '/stale-handle/' ./test/conformance   # one case
//	go test -run '//geard' ./test/conformance          # one server
//
// TestLoad (make load) and TestSoak (make soak) show what of the contract holds under load and loss, at any scale. TestDashboard (make dashboard) draws
// what the dashboard shows of it.
package conformance

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	ctrl "sigs.k8s.io/controller-runtime"

	"zuulbuild.dev/zuulbuild/hack/apiserver"
	"zuulbuild.dev/zuulbuild/hack/parallel"
)

// patience bounds every wait that the contract does not bound.
const patience = 40 * time.Second

// sideBySide is how many tests run at once: nearly all of their time is waiting.
const sideBySide = 10

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	parallel.Tests(sideBySide)
	code := apiserver.Run(m)
	complain := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "conformance:", err)
			code = max(code, 1)
		}
	}
	if program.folder != "" {
		complain(os.RemoveAll(program.folder))
	}
	complain(nothingLeft())
	complain(goleak.Find())
	os.Exit(code)
}

// program is the program under test.
var program struct {
	once   sync.Once
	folder string
	path   string
	err    error
}

// programVariable names a program to test instead of this tree's: another release, or one that was broken on purpose.
const programVariable = "ZUULBUILD_PROGRAM"

// buildProgram builds it once, with the race detector.
func buildProgram(t *testing.T) string {
	t.Helper()
	program.once.Do(func() {
		if program.path = os.Getenv(programVariable); program.path != "" {
			return
		}
		if program.folder, program.err = os.MkdirTemp("", "zuulbuild-conformance-"); program.err != nil {
			return
		}
		program.path = filepath.Join(program.folder, "zuulbuild")
		output, err := exec.Command("go", "build", "-race", "-buildvcs=false", "-o", program.path, "zuulbuild.dev/zuulbuild").CombinedOutput()
		if err != nil {
			program.err = fmt.Errorf("build the program: %w\n%s", err, output)
		}
	})
	if program.err != nil {
		t.Fatal(program.err)
	}
	return program.path
}

// nothingLeft looks for processes that the tests started and did not end.
func nothingLeft() error {
	entries, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		stat, err := os.ReadFile(entry)
		if err != nil {
			continue // it has ended meanwhile
		}
		// PID (NAME) STATE PARENT …, where NAME may hold anything.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) > 1 && string(fields[1]) == strconv.Itoa(os.Getpid()) {
			return fmt.Errorf("a process is left behind: %s", stat[:bytes.LastIndexByte(stat, ')')+1])
		}
	}
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
