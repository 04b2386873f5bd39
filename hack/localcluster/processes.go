package localcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// identity names one process for ever: process ids come round again, and both pid and start time can recur after a boot.
type identity struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // clock ticks since boot, field 22 of /proc/PID/stat
	Boot      string `json:"boot"`      // /proc/sys/kernel/random/boot_id
}

// process is a component that was started: who it is, and all that is needed to start it again. It is kept as one JSON
// file a component, so that another command can stop or restart it.
type process struct {
	identity
	Name    string   `json:"name"`
	Command []string `json:"command"`
	Group   string   `json:"group"` // control group
	Log     string   `json:"log"`   // file that takes stdout and stderr; a restart adds to it
}

func identify(pid int) (identity, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, err
	}
	state, start, err := parseStat(string(stat))
	if err != nil {
		return identity{}, fmt.Errorf("process %d: %w", pid, err)
	}
	if state == "Z" || state == "X" {
		return identity{}, fmt.Errorf("process %d has ended: %w", pid, fs.ErrNotExist)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return identity{}, err
	}
	return identity{PID: pid, StartTime: start, Boot: strings.TrimSpace(string(boot))}, nil
}

// parseStat reads state (field 3) and start time (field 22) from /proc/PID/stat. The second field is the command's name in
// parentheses and may itself hold blanks and parentheses, so counting starts after the last one.
func parseStat(stat string) (state string, startTime uint64, err error) {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return "", 0, fmt.Errorf("no command name in stat line %q", stat)
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 20 {
		return "", 0, fmt.Errorf("%d fields after the command name in stat line %q, want at least 20", len(fields), stat)
	}
	startTime, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0], startTime, err
}

// alive says whether exactly this process still runs; a zombie has ended.
func (i identity) alive() bool {
	if i.PID <= 1 {
		return false
	}
	current, err := identify(i.PID)
	return err == nil && current == i
}

// signal sends to exactly this process, through a handle on it, so that not even a pid reused in between is hit.
func (i identity) signal(signal syscall.Signal) error {
	handle, err := os.FindProcess(i.PID) // a pidfd on Linux
	if err != nil {
		return nil
	}
	defer func() { _ = handle.Release() }()
	if !i.alive() {
		return nil
	}
	if err := handle.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", i.PID, err)
	}
	return nil
}

// stop asks the process to end, insists after the grace period, and waits until it is gone.
func (i identity) stop(ctx context.Context, grace time.Duration) error {
	gone := func() (bool, error) { return !i.alive(), nil }
	if grace > 0 {
		if err := i.signal(syscall.SIGTERM); err != nil {
			return err
		}
		patience, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		if poll(patience, 20*time.Millisecond, gone) == nil {
			return nil
		}
	}
	if err := i.signal(syscall.SIGKILL); err != nil {
		return err
	}
	return poll(ctx, 20*time.Millisecond, gone)
}

// start runs the command detached from the caller, in its control group from the first instruction on, and remembers it.
func (c *Cluster) start(p process) error {
	if len(p.Command) == 0 {
		return fmt.Errorf("component %s has no command", p.Name)
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	groups, err := controlGroups()
	if err != nil {
		return err
	}
	// The shell joins the group and becomes the program: were the caller killed between starting and writing down, the
	// process would still be found in the group.
	const join = `echo $$ >"$0" && exec "$@"`
	member := filepath.Join(groups.tracking, p.Group, "cgroup.procs")
	command := exec.Command("/bin/sh", append([]string{"-c", join, member}, p.Command...)...)
	command.Stdout, command.Stderr = log, log
	command.Dir = c.folder
	command.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "GOTRACEBACK=all"}
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.identity, err = identify(command.Process.Pid)
	go func() { _ = command.Wait() }() // collects it should it end while this program runs; it has no other use for the outcome
	if err != nil {
		return c.failed(p.Name, fmt.Errorf("ended at once: %w", err))
	}
	return c.remember(p)
}

func (c *Cluster) processFile(name string) string {
	return filepath.Join(c.folder, "processes", name+".json")
}

func (c *Cluster) remember(p process) error {
	content, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(c.processFile(p.Name), append(content, '\n'), 0o644)
}

func (c *Cluster) recall(name string) (process, error) {
	var p process
	content, err := os.ReadFile(c.processFile(name))
	if err != nil {
		return p, fmt.Errorf("cluster %s has no component %s: %w", c.name, name, err)
	}
	if err := json.Unmarshal(content, &p); err != nil {
		return p, fmt.Errorf("%s: %w", c.processFile(name), err)
	}
	return p, nil
}

// processes returns all that were ever started, whether they still run or not.
func (c *Cluster) processes() ([]process, error) {
	files, err := filepath.Glob(c.processFile("*"))
	if err != nil {
		return nil, err
	}
	var all []process
	for _, file := range files {
		p, err := c.recall(strings.TrimSuffix(filepath.Base(file), ".json"))
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// failed wraps what went wrong with a component in its name and the end of its log.
func (c *Cluster) failed(name string, err error) error {
	file := c.logFile(name)
	content, readErr := os.ReadFile(file)
	if readErr != nil || len(content) == 0 {
		return fmt.Errorf("%s: %w (%s is empty)", name, err, file)
	}
	return fmt.Errorf("%s: %w; the end of %s:\n%s", name, err, file, lastLines(string(content), 15))
}

func (c *Cluster) logFile(name string) string { return filepath.Join(c.folder, "logs", name+".log") }
