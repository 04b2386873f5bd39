package localcluster

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
)

// runtimeFolder holds what belongs to this boot of the machine: claimed slots and the handles of namespaces.
const runtimeFolder = "/run/zuulbuild"

// cacheFolder is ${XDG_CACHE_HOME:-~/.cache}/zuulbuild.
func cacheFolder() string {
	if folder := os.Getenv("XDG_CACHE_HOME"); filepath.IsAbs(folder) {
		return filepath.Join(folder, "zuulbuild")
	}
	return filepath.Join(cmp.Or(os.Getenv("HOME"), "/root"), ".cache", "zuulbuild")
}

func clustersFolder() string { return filepath.Join(cacheFolder(), "clusters") }

var clusterName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$`)

// checkName refuses what could not be a folder, a context in a kubeconfig, or part of either.
func checkName(name string) error {
	if !clusterName.MatchString(name) {
		return fmt.Errorf("cluster name %q: want 1 to 40 of a-z, 0-9 and -, starting and ending with a letter or digit", name)
	}
	return nil
}

// writeFile writes a file so that a reader, or a start after a crash, sees the old content or the new, never a part.
func writeFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) // fails once renamed
	_, err = temporary.Write(content)
	if err == nil {
		err = temporary.Chmod(mode)
	}
	if closeErr := temporary.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(temporary.Name(), path)
}

// lock takes an exclusive lock on a file, waiting for other processes (and other callers in this one) to let go. The
// kernel releases it when the holder ends, however it ends. busy, when not nil, is called once before waiting.
func lock(path string, busy func()) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = flock(file, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		if busy != nil {
			busy()
		}
		err = flock(file, syscall.LOCK_EX)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { file.Close() }, nil
}

func flock(file *os.File, how int) error {
	for {
		if err := syscall.Flock(int(file.Fd()), how); err != syscall.EINTR {
			return err
		}
	}
}
