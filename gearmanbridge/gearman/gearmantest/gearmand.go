package gearmantest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// RequireVariable is the environment variable that, set to 1, makes a test
// fail instead of being skipped where gearmand is not installed.
const RequireVariable = "ZUULBUILD_REQUIRE_GEARMAND"

const (
	startTimeout = 10 * time.Second
	stopTimeout  = 5 * time.Second
	startTries   = 5
	pollInterval = 10 * time.Millisecond
)

// Gearmand is a process of the real gearmand, the package gearman-job-server
// of Debian. It listens on the loopback interface unless StartGearmandAt
// started it.
type Gearmand struct {
	// Address is "host:port", the same over restarts.
	Address string

	t         testing.TB
	program   string
	arguments []string

	mu      sync.Mutex
	command *exec.Cmd
	output  *bytes.Buffer
	exited  chan struct{}
}

// StartGearmand starts gearmand with the arguments, such as "--round-robin",
// on a free port, and stops it when the test ends. Where it is not installed
// the test is skipped, or fails if RequireVariable says so.
func StartGearmand(t testing.TB, arguments ...string) (address string) {
	t.Helper()
	return NewGearmand(t, arguments...).Address
}

// StartGearmandAt is StartGearmand for clients that are not on this machine's
// loopback interface, as Pods are: host is the IP address to listen at.
func StartGearmandAt(t testing.TB, host string, arguments ...string) (address string) {
	t.Helper()
	return newGearmand(t, host, arguments).Address
}

// NewGearmand is StartGearmand for tests that stop and start the server again.
func NewGearmand(t testing.TB, arguments ...string) *Gearmand {
	t.Helper()
	return newGearmand(t, ownHost(), arguments)
}

func newGearmand(t testing.TB, host string, arguments []string) *Gearmand {
	t.Helper()
	g := &Gearmand{t: t, program: NeedGearmand(t), arguments: arguments}
	t.Cleanup(g.Stop)
	var err error
	for range startTries { // another program may take the free port
		g.Address = freeAddress(t, host)
		if err = g.start(); err == nil {
			return g
		}
	}
	t.Fatalf("gearmand does not start: %v", err)
	return nil
}

// NeedGearmand returns where gearmand is. Where it is not installed the test
// is skipped, or fails if RequireVariable says so.
func NeedGearmand(t testing.TB) (program string) {
	t.Helper()
	program, err := find()
	if err != nil {
		if os.Getenv(RequireVariable) == "1" {
			t.Fatalf("gearmand is required by %s=1: %v; install gearman-job-server", RequireVariable, err)
		}
		t.Skipf("gearmand is not installed (gearman-job-server): %v", err)
	}
	return program
}

// find looks where a user's PATH may not.
func find() (string, error) {
	program, err := exec.LookPath("gearmand")
	if err == nil {
		return program, nil
	}
	const administrators = "/usr/sbin/gearmand"
	if _, statErr := os.Stat(administrators); statErr == nil {
		return administrators, nil
	}
	return "", err
}

func freeAddress(t testing.TB, host string) string {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// Start starts the server again after Stop or Kill, on the same port. It has
// no jobs and counts its handles from 1.
func (g *Gearmand) Start() {
	g.t.Helper()
	if err := g.start(); err != nil {
		g.t.Fatalf("gearmand does not start again: %v", err)
	}
}

// Stop ends the server in good order (SIGTERM), or by force if that takes too
// long. It does nothing if the server does not run.
func (g *Gearmand) Stop() { g.end(syscall.SIGTERM) }

// Kill ends the server at once (SIGKILL).
func (g *Gearmand) Kill() { g.end(syscall.SIGKILL) }

// Pause stops the process without ending it (SIGSTOP): connections stay open
// and mute. Resume lets it go on.
func (g *Gearmand) Pause() { g.signal(syscall.SIGSTOP) }

// Resume is the end of Pause.
func (g *Gearmand) Resume() { g.signal(syscall.SIGCONT) }

func (g *Gearmand) signal(signal syscall.Signal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.command == nil {
		return
	}
	if err := g.command.Process.Signal(signal); err != nil {
		g.t.Errorf("gearmand: %v: %v", signal, err)
	}
}

func (g *Gearmand) start() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	host, port, err := net.SplitHostPort(g.Address)
	if err != nil {
		return err
	}
	arguments := append([]string{"--listen=" + host, "--port=" + port, "--log-file=stderr"}, g.arguments...)
	command := exec.Command(g.program, arguments...)
	output := new(bytes.Buffer)
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = endWithParent()
	if err := command.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = command.Wait()
		close(exited)
	}()
	if err := awaitListening(g.Address, exited, output); err != nil {
		_ = command.Process.Kill()
		<-exited
		return err
	}
	g.command, g.output, g.exited = command, output, exited
	return nil
}

// end sends the signal and waits for the process to be gone.
func (g *Gearmand) end(signal syscall.Signal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.command == nil {
		return
	}
	process := g.command.Process
	_ = process.Signal(syscall.SIGCONT)
	_ = process.Signal(signal)
	select {
	case <-g.exited:
	case <-time.After(stopTimeout):
		_ = process.Kill()
		<-g.exited
	}
	if g.t.Failed() {
		g.t.Logf("gearmand wrote:\n%s", g.output)
	}
	g.command = nil
}

// awaitListening returns when the server answers at the address. output may be
// read only if it has exited.
func awaitListening(address string, exited <-chan struct{}, output *bytes.Buffer) error {
	deadline := time.Now().Add(startTimeout)
	for {
		err := askVersion(address)
		select {
		case <-exited:
			return fmt.Errorf("it exited: %s", output)
		default:
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no answer at %s within %v: %w", address, startTimeout, err)
		}
		time.Sleep(pollInterval)
	}
}

func askVersion(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	admin, err := gearman.DialAdmin(ctx, address, nil)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }()
	_, err = admin.Version(ctx)
	return err
}
