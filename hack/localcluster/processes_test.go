package localcluster

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseStat(t *testing.T) {
	const rest = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21\n"
	tests := map[string]struct {
		stat      string
		wantState string
		wantStart uint64
		wantErr   string
	}{
		"plain":                           {stat: "42 (sleep) S" + rest, wantState: "S", wantStart: 4711},
		"blanks and parentheses in name":  {stat: "42 (a) R 1 (b c) Z" + rest, wantState: "Z", wantStart: 4711},
		"too short":                       {stat: "42 (sleep) S 1 2", wantErr: "3 fields"},
		"no name":                         {stat: "42 sleep S" + rest, wantErr: "no command name"},
		"start time that is not a number": {stat: "42 (sleep) S" + strings.Replace(rest, "4711", "x", 1), wantErr: "invalid syntax"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			state, start, err := parseStat(test.stat)
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Fatalf("error %v, want one with %q", err, test.wantErr)
				}
				return
			}
			if err != nil || state != test.wantState || start != test.wantStart {
				t.Errorf("got state %q, start %d, error %v; want %q, %d, none", state, start, err, test.wantState, test.wantStart)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	command := exec.Command("sleep", "600")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	}()
	real, err := identify(command.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}

	// Whatever differs from the process that was started stands for another process that got the same number.
	reused := map[string]identity{
		"other start time": {PID: real.PID, StartTime: real.StartTime + 1, Boot: real.Boot},
		"other boot":       {PID: real.PID, StartTime: real.StartTime, Boot: "another"},
		"never started":    {},
		"init":             {PID: 1},
	}
	for name, other := range reused {
		if other.alive() {
			t.Errorf("%s: alive", name)
		}
		if err := other.stop(t.Context(), time.Second); err != nil {
			t.Errorf("%s: stop: %v", name, err)
		}
	}
	if !real.alive() {
		t.Fatal("stopping others ended the process, or it never counted as alive")
	}

	if err := real.stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if real.alive() { // it is a zombie now, as nobody has waited for it
		t.Error("alive after stop")
	}
	if err := real.signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestStopInsists(t *testing.T) {
	command := exec.Command("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = command.Wait() }()
	if _, err := output.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	stubborn, err := identify(command.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := stubborn.stop(t.Context(), 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if stubborn.alive() {
		t.Error("alive after stop")
	}
}

func TestRememberProcesses(t *testing.T) {
	c := &Cluster{name: "test", folder: t.TempDir()}
	kubelet := process{
		identity: identity{PID: 42, StartTime: 7, Boot: "b"},
		Name:     "kubelet-node-1", Command: []string{"kubelet", "--v=1"}, Group: "/g", Log: "/l",
	}
	etcd := process{Name: "etcd", Command: []string{"etcd"}}
	for _, p := range []process{kubelet, etcd} {
		if err := c.remember(p); err != nil {
			t.Fatal(err)
		}
	}
	got, err := c.processes()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]process{etcd, kubelet}, got, cmp.AllowUnexported(process{})); diff != "" {
		t.Errorf("processes differ (-want +got):\n%s", diff)
	}
	if _, err := c.recall("kwok"); err == nil || !strings.Contains(err.Error(), "no component kwok") {
		t.Errorf("recall of what was never started: %v", err)
	}
}

func TestFailedShowsEndOfLog(t *testing.T) {
	c := &Cluster{name: "test", folder: t.TempDir()}
	if err := writeFile(c.logFile("etcd"), []byte(strings.Repeat("early\n", 100)+"cannot listen\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	message := c.failed("etcd", context.DeadlineExceeded).Error()
	for _, want := range []string{"etcd:", "cannot listen", c.logFile("etcd"), context.DeadlineExceeded.Error()} {
		if !strings.Contains(message, want) {
			t.Errorf("%q is not in %q", want, message)
		}
	}
	if count := strings.Count(message, "\n"); count > 15 {
		t.Errorf("%d lines of log, want at most 15", count)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "lock")
	unlock, err := lock(path, func() { t.Error("busy although nobody holds the lock") })
	if err != nil {
		t.Fatal(err)
	}
	waits, second := make(chan struct{}), make(chan error)
	var released atomic.Bool
	go func() {
		unlockSecond, err := lock(path, func() { close(waits) })
		if err == nil {
			if !released.Load() {
				t.Error("two holders at once")
			}
			unlockSecond()
		}
		second <- err
	}()
	<-waits
	released.Store(true)
	unlock()
	if err := <-second; err != nil {
		t.Fatal(err)
	}
}

func TestWriteFileReplacesWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "file")
	for _, content := range []string{"first, the longer one", "second"} {
		if err := writeFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Fatalf("read %q, %v; want %q", got, err, content)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%d files in the folder (%v), want only the one written", len(entries), err)
	}
}
