//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"zuulbuild.dev/zuulbuild/hack/localcluster"
	"zuulbuild.dev/zuulbuild/hack/programs"
)

const (
	operatorNamespace = "zuulbuild-system"
	release           = "zuulbuild"
)

// buildImage builds the operator's image for this machine and puts it on every node.
func (d *demo) buildImage(ctx context.Context) error {
	archive := filepath.Join(d.folder, "zuulbuild-image.tar")
	// Its own tag for each run: a tag that is on the nodes already would keep an old operator running.
	d.tag = fmt.Sprintf("demo-%d", time.Now().Unix())
	build := exec.CommandContext(ctx, "go", "run", "./hack/image", "--platforms", "linux/"+runtime.GOARCH, "--version", d.tag, "--output", archive)
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return err
	}
	return d.local.ImportImage(ctx, archive)
}

// installChart installs the operator, with a Gearman server unless there is one, and opens ways to both from this machine.
func (d *demo) installChart(ctx context.Context) error {
	if err := localcluster.BuildTools(ctx, os.Stdout, "helm"); err != nil {
		return err
	}
	helm := localcluster.Tool("helm")
	address, err := programs.FreeAddress()
	if err != nil {
		return err
	}
	d.pages = "http://" + address
	arguments := []string{"upgrade", "--install", release, "charts/zuulbuild", "--kubeconfig", d.kubeconfig, "--namespace", operatorNamespace,
		"--create-namespace", "--wait", "--timeout", "3m", "--hide-notes", "--values", "hack/demo/values.yaml", "--set", "image.tag=" + d.tag, "--set", "pages.url=" + d.pages}
	if d.gearman != "" {
		arguments = append(arguments, "--set", "gearman.embedded.enabled=false", "--set", "gearman.servers[0].address="+d.gearman)
	}
	if err := d.helmRun(ctx, helm, arguments...); err != nil {
		return err
	}
	if d.uninstall {
		d.cleanup = append(d.cleanup, func() {
			_ = d.helmRun(context.WithoutCancel(ctx), helm, "uninstall", release, "--kubeconfig", d.kubeconfig, "--namespace", operatorNamespace)
		})
	}
	if err := d.kubectlRun(ctx, nil, "--namespace", operatorNamespace, "get", "pods", "--output", "wide"); err != nil {
		return err
	}
	_, port, _ := strings.Cut(address, ":")
	if _, err := d.forward("pages", "service/"+release, port+":80"); err != nil {
		return err
	}
	if d.gearman == "" {
		d.gearman, err = d.forward("gearman", "service/"+release+"-gearman", ":4730")
	}
	return err
}

// forward opens a way from this machine to a Service and returns its address here.
func (d *demo) forward(name, service, ports string) (string, error) {
	forward, err := programs.Start(filepath.Join(d.folder, name+"-forward.log"), d.kubectl, "--kubeconfig", d.kubeconfig, "--namespace", operatorNamespace,
		"port-forward", "--address", "127.0.0.1", service, ports)
	if err != nil {
		return "", err
	}
	d.cleanup = append(d.cleanup, func() { forward.Stop(5 * time.Second) })
	d.processes = append(d.processes, forward.ID())
	line, err := forward.AwaitLine("Forwarding from", 30*time.Second)
	if err != nil {
		return "", err
	}
	address := strings.Fields(line)[2]
	fmt.Printf("%s at %s\n", name, address)
	return address, nil
}

func (d *demo) helmRun(ctx context.Context, helm string, arguments ...string) error {
	command := exec.CommandContext(ctx, helm, arguments...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	if err := command.Run(); err != nil {
		return fmt.Errorf("helm %s: %w", arguments[0], err)
	}
	return nil
}
