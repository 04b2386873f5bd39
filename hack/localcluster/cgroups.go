package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hierarchies are the mounted control group hierarchies: one of version 2, or one for each controller of version 1.
type hierarchies struct {
	mounts  []string
	version int
	// all also holds a version 2 that is mounted beside version 1, where runc makes groups too.
	all []string
	// tracking is the one whose membership says which processes are the cluster's own.
	tracking string
}

// controlGroups reads the hierarchies from the mount table ("/proc/self/mountinfo").
func controlGroups() (hierarchies, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return hierarchies{}, err
	}
	found := parseHierarchies(string(table))
	if len(found.mounts) == 0 {
		return found, errors.New("no control groups are mounted below /sys/fs/cgroup")
	}
	return found, nil
}

// parseHierarchies prefers version 1 where both are mounted: then the controllers are there, and version 2 is empty.
func parseHierarchies(mountinfo string) hierarchies {
	var version1, version2 []string
	for _, mount := range parseMounts(mountinfo) {
		switch {
		case !strings.HasPrefix(mount.path, "/sys/fs/cgroup"):
		case mount.kind == "cgroup":
			version1 = append(version1, mount.path)
		case mount.kind == "cgroup2":
			version2 = append(version2, mount.path)
		}
	}
	if len(version1) == 0 {
		found := hierarchies{mounts: version2, all: version2, version: 2}
		if len(version2) > 0 {
			found.tracking = version2[0]
		}
		return found
	}
	found := hierarchies{mounts: version1, all: slices.Concat(version1, version2), version: 1, tracking: version1[0]}
	if index := slices.IndexFunc(version1, func(path string) bool { return filepath.Base(path) == "pids" }); index >= 0 {
		found.tracking = version1[index]
	}
	return found
}

// create makes a group ("/zuulbuild-0/node-1") in every hierarchy. In version 2 it also hands every controller down to
// it, as the kubelet expects of its root group.
func (h hierarchies) create(group string) error {
	for _, mount := range h.mounts {
		path := mount
		for _, element := range strings.Split(strings.Trim(group, "/"), "/") {
			if h.version == 2 {
				if err := delegate(path); err != nil {
					return err
				}
			}
			path = filepath.Join(path, element)
			if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	return nil
}

func delegate(path string) error {
	controllers, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var enable []string
	for _, controller := range strings.Fields(string(controllers)) {
		enable = append(enable, "+"+controller)
	}
	return os.WriteFile(filepath.Join(path, "cgroup.subtree_control"), []byte(strings.Join(enable, " ")), 0o644)
}

// members lists the processes in a group and below it.
func (h hierarchies) members(group string) ([]int, error) {
	var members []int
	err := walkGroups(filepath.Join(h.tracking, group), func(path string) error {
		list, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			return nil // the group went away meanwhile
		}
		if err != nil {
			return err
		}
		for _, field := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
				members = append(members, pid)
			}
		}
		return nil
	})
	return members, err
}

// kill ends every process in a group and below it. A process that forks meanwhile is found in the next round.
func (h hierarchies) kill(ctx context.Context, group string) error {
	var members []int
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		var err error
		if members, err = h.members(group); err != nil {
			return false, err
		}
		for _, pid := range members {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is fine; anything else shows in the next round
		}
		return len(members) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("end the processes %v of control group %s: %w", members, group, err)
	}
	return nil
}

// remove deletes a group and those below it from every hierarchy. The kernel refuses for a moment after the last process
// has ended.
func (h hierarchies) remove(ctx context.Context, group string) error {
	for _, mount := range h.all {
		top := filepath.Join(mount, group)
		var last error
		err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
			var groups []string
			if err := walkGroups(top, func(path string) error { groups = append(groups, path); return nil }); err != nil {
				return false, err
			}
			slices.Reverse(groups) // the innermost first
			last = nil
			for _, path := range groups {
				if err := syscall.Rmdir(path); err != nil && err != syscall.ENOENT {
					last = fmt.Errorf("remove %s: %w", path, err)
				}
			}
			return last == nil, nil
		})
		if err != nil {
			return errors.Join(err, last)
		}
	}
	return nil
}

// walkGroups visits a group and then those below it; one that is not there is no error.
func walkGroups(top string, visit func(path string) error) error {
	return filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			return nil
		}
		if err != nil || !entry.IsDir() {
			return err
		}
		return visit(path)
	})
}

// mountPoint is one line of a mount table.
type mountPoint struct{ path, kind string }

// parseMounts reads the format of /proc/PID/mountinfo (proc(5)), in order: what is mounted later may be on top.
func parseMounts(mountinfo string) []mountPoint {
	var mounts []mountPoint
	for line := range strings.Lines(mountinfo) {
		before, after, found := strings.Cut(line, " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if found && len(fields) >= 5 && len(rest) >= 1 {
			mounts = append(mounts, mountPoint{path: unescapeMount(fields[4]), kind: rest[0]})
		}
	}
	return mounts
}

// unescapeMount undoes the octal escapes of blanks and backslashes in a mount table.
func unescapeMount(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// poll calls try until it says done, fails, or the context ends.
func poll(ctx context.Context, interval time.Duration, try func() (done bool, err error)) error {
	timer := time.NewTicker(interval)
	defer timer.Stop()
	for {
		if done, err := try(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
}
