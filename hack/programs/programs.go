//go:build linux

// Package programs starts the programs that a demonstration or an end-to-end test is made of, and ends exactly those.
package programs

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Program is a program that was started. It outlives the one that started it unless StartBound did.
type Program struct {
	// LogFile has what it writes to its outputs.
	LogFile string
	name    string
	process *os.Process
	ended   chan struct{}
}

// Start runs a program with its outputs in logFile, which it appends to.
func Start(logFile, path string, arguments ...string) (*Program, error) {
	return start(&syscall.SysProcAttr{Setsid: true}, logFile, path, arguments)
}

// StartBound is Start for a program that is killed if the one that started it ends.
func StartBound(logFile, path string, arguments ...string) (*Program, error) {
	return start(&syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}, logFile, path, arguments)
}

func start(attributes *syscall.SysProcAttr, logFile, path string, arguments []string) (*Program, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command := exec.Command(path, arguments...)
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = attributes
	if err := command.Start(); err != nil {
		return nil, err
	}
	p := &Program{LogFile: logFile, name: path, process: command.Process, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		_ = command.Wait()
	}()
	return p, nil
}

// ID is its process id.
func (p *Program) ID() int { return p.process.Pid }

// Ended is closed when it has ended.
func (p *Program) Ended() <-chan struct{} { return p.ended }

// Signal sends it a signal.
func (p *Program) Signal(signal os.Signal) error { return p.process.Signal(signal) }

// Stop asks it to end and has it ended where it does not within the time given.
func (p *Program) Stop(within time.Duration) {
	_ = p.process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(within):
		p.Kill()
	}
}

// Kill ends it at once, as SIGKILL does.
func (p *Program) Kill() {
	_ = p.process.Kill()
	<-p.ended
}

// AwaitLine waits until its log has a line that holds text and returns that line. The error shows the end of the log.
func (p *Program) AwaitLine(text string, within time.Duration) (string, error) {
	deadline := time.Now().Add(within)
	for {
		log, err := os.ReadFile(p.LogFile)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, text) {
				return strings.TrimSpace(line), nil
			}
		}
		select {
		case <-p.ended:
			return "", fmt.Errorf("%s ended before it said %q:\n%s", p.name, text, tail(string(log)))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("%s did not say %q within %s:\n%s", p.name, text, within, tail(string(log)))
		}
	}
}

func tail(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// FreeAddress is an address of the loopback that nobody listens at.
func FreeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}
