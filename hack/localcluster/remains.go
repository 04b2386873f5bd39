package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// clean ends and removes everything there is of a cluster, however much that is: after a proper run, after everything
// was killed half-way, after a reboot. It relies only on what is on disk and in the kernel. Logs are kept on request.
func (c *Cluster) clean(ctx context.Context, keepLogs bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 60*time.Second) // an interrupted start cleans up too
	defer cancel()
	started, err := c.processes()
	if err != nil {
		return err
	}
	for _, p := range started {
		if err := p.signal(syscall.SIGKILL); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	for _, p := range started {
		if err := p.stop(ctx, 0); err != nil {
			return fmt.Errorf("end %s: %w", p.Name, err)
		}
	}
	slots, err := c.claimedSlots()
	if err != nil {
		return err
	}
	for _, s := range slots {
		if err := s.release(ctx); err != nil {
			return fmt.Errorf("cluster %s: %w", c.name, err)
		}
	}
	if err := unmountBelow(c.folder); err != nil {
		return err
	}
	return removeFolder(c.folder, keepLogs)
}

// claimedSlots are the slots that say they are this cluster's, and the one the cluster remembers unless it is another's:
// the runtime folder may have been emptied.
func (c *Cluster) claimedSlots() ([]slot, error) {
	claimed, err := ownedSlots(c.folder)
	if err != nil {
		return nil, err
	}
	if earlier, err := Open(c.name); err == nil && !slices.Contains(claimed, earlier.state.Slot) {
		if owner, err := earlier.state.Slot.owner(); err == nil && owner == "" {
			claimed = append(claimed, earlier.state.Slot)
		}
	}
	return claimed, nil
}

func removeFolder(folder string, keepLogs bool) error {
	if !keepLogs {
		return os.RemoveAll(folder)
	}
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if entry.Name() != "logs" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(folder, entry.Name())))
		}
	}
	return err
}

// release ends all processes of the slot's control groups and gives back what the slot holds of the machine: namespaces
// with every mount and interface in them, the bridge, the groups, and the slot itself.
func (s slot) release(ctx context.Context) error {
	groups, err := controlGroups()
	if err != nil {
		return err
	}
	if err := groups.kill(ctx, s.group()); err != nil {
		return err
	}
	if err := unmountBelow(s.folder()); err != nil {
		return err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, link := range interfaces {
		if !s.owns(link.Name) {
			continue
		}
		// An end of a pair goes by itself when its namespace does, perhaps just now.
		if _, err := run(ctx, "", "ip", "link", "delete", link.Name); err != nil && interfaceExists(link.Name) {
			return err
		}
	}
	if err := groups.remove(ctx, s.group()); err != nil {
		return err
	}
	if err := os.RemoveAll(s.folder()); err != nil {
		return err
	}
	return os.RemoveAll(s.ownerFile())
}

// owns says whether an interface's name is one that this slot gives.
func (s slot) owns(link string) bool {
	rest, found := strings.CutPrefix(link, s.bridge())
	return found && (rest == "" || rest[0] == 'n')
}

func interfaceExists(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

// unmountBelow lets go of every mount at or below a folder, what is on top first.
func unmountBelow(folder string) error {
	below, err := mountsBelow(folder)
	if err != nil {
		return err
	}
	slices.Reverse(below)
	for _, path := range below {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil && err != syscall.EINVAL && err != syscall.ENOENT {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	// Removing a folder reaches through mounts that are still there, so make sure.
	if below, err = mountsBelow(folder); err == nil && len(below) > 0 {
		err = fmt.Errorf("still mounted: %s", strings.Join(below, " "))
	}
	return err
}

func mountsBelow(folder string) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var below []string
	for _, mount := range parseMounts(string(table)) {
		if mount.path == folder || strings.HasPrefix(mount.path, folder+"/") {
			below = append(below, mount.path)
		}
	}
	return below, nil
}

// bindToItself makes a folder a mount of its own that nothing propagates from: handles of mount namespaces can only be
// kept on such a one.
func bindToItself(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(folder, folder, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind mount %s: %w", folder, err)
	}
	if err := syscall.Mount("", folder, "", syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mount %s private: %w", folder, err)
	}
	return nil
}
