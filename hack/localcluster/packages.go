package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// clusterPackages are the Debian packages a cluster runs on; testPackages those that only tests need.
var (
	clusterPackages = []string{"busybox-static", "containernetworking-plugins", "iproute2", "iptables", "mount", "runc", "util-linux"}
	testPackages    = []string{"gearman-job-server", "gearman-tools"}
)

// InstallPackages installs the Debian packages that clusters and the project's tests need, and more, where they are missing. It
// starts no service: the Gearman server is run by the tests themselves, on ports of their own.
func InstallPackages(ctx context.Context, log io.Writer, more ...string) error {
	return installPackages(ctx, log, slices.Concat(clusterPackages, testPackages, more))
}

func installPackages(ctx context.Context, log io.Writer, names []string) error {
	if len(missingPackages(ctx, names)) == 0 {
		return nil
	}
	if err := requireRoot(); err != nil {
		return err
	}
	unlock, err := lock(runtimeFolder+"/packages.lock", func() { fmt.Fprintln(log, "waiting for another installation of packages") })
	if err != nil {
		return err
	}
	defer unlock()
	missing := missingPackages(ctx, names)
	if len(missing) == 0 {
		return nil
	}
	fmt.Fprintf(log, "installing packages: %s\n", strings.Join(missing, " "))
	start := time.Now()
	allow, err := forbidServiceStarts()
	if err != nil {
		return err
	}
	defer allow()
	if err := aptGet(ctx, "update"); err != nil {
		return err
	}
	if err := aptGet(ctx, append([]string{"install", "--yes", "--no-install-recommends"}, missing...)...); err != nil {
		return err
	}
	fmt.Fprintf(log, "installed packages in %s\n", time.Since(start).Round(time.Second))
	return nil
}

func missingPackages(ctx context.Context, names []string) []string {
	// dpkg-query fails when one name is unknown to it, and still prints the others.
	output, _ := exec.CommandContext(ctx, "dpkg-query", append([]string{"-W", "-f", "${Package} ${db:Status-Status}\n"}, names...)...).Output()
	return notInstalled(names, string(output))
}

// notInstalled picks the names that a dpkg-query listing ("NAME STATUS" a line) does not show as installed.
func notInstalled(names []string, listing string) []string {
	installed := map[string]bool{}
	for line := range strings.Lines(listing) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[1] == "installed" {
			installed[fields[0]] = true
		}
	}
	var missing []string
	for _, name := range names {
		if !installed[name] {
			missing = append(missing, name)
		}
	}
	return missing
}

// aptPatience is how long another apt may be at work on this machine, as one that a timer has started: it is waited for rather than failed.
const aptPatience = 10 * time.Minute

func aptGet(ctx context.Context, arguments ...string) error {
	for deadline := time.Now().Add(aptPatience); ; {
		// The timeout is of one of apt's locks alone. At the others it fails at once.
		command := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=600"}, arguments...)...)
		command.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
		output, err := command.CombinedOutput()
		if err == nil {
			return nil
		}
		if !strings.Contains(string(output), "Could not get lock") || time.Now().After(deadline) {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(arguments, " "), err, lastLines(string(output), 20))
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return fmt.Errorf("apt-get %s: %w", strings.Join(arguments, " "), ctx.Err())
		}
	}
}

// forbidServiceStarts makes package installation start no service, by Debian's own means (invoke-rc.d asks policy-rc.d;
// exit status 101 forbids). A policy that is already there is left alone.
func forbidServiceStarts() (restore func(), err error) {
	const policy = "/usr/sbin/policy-rc.d"
	file, err := os.OpenFile(policy, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	_, err = file.WriteString("#!/bin/sh\nexit 101\n")
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return func() { os.Remove(policy) }, err
}

func requireRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("a local cluster needs root: it makes network and mount namespaces, cgroups and bridges")
	}
	return nil
}
