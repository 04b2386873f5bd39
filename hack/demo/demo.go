//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"zuulbuild.dev/zuulbuild/hack/localcluster"
	"zuulbuild.dev/zuulbuild/hack/programs"
)

const (
	namespace = "zuulbuild-demo"
	// localImage is in every local cluster; publicImage stands in for it elsewhere.
	localImage  = "zuulbuild.test/busybox:1"
	publicImage = "docker.io/library/busybox:1"
)

// demo is one run.
type demo struct {
	keep             bool
	gearman, program string
	cluster          string

	local               *localcluster.Cluster // nil: the cluster of KUBECONFIG
	kubeconfig, kubectl string
	uninstall           bool   // at the end, because the cluster stays
	tag                 string // of the image of the operator
	image               string
	folder              string // of logs
	pages               string // address of the build pages
	cleanup             []func()
	processes           []int // left running with KEEP
}

type step struct {
	what string
	do   func(context.Context) error
}

func (d *demo) run(ctx context.Context) (err error) {
	defer func() {
		if !d.keep || err != nil {
			for i := len(d.cleanup) - 1; i >= 0; i-- {
				d.cleanup[i]()
			}
		}
	}()
	start := []step{{"The image", d.buildImage}, {"The chart", d.installChart}, {"Jobs", d.applyJobs}}
	if os.Getenv("KUBECONFIG") != "" { // whose nodes cannot be given an image
		start = []step{{"Definitions and jobs", d.applyObjects}, {"A Gearman server", d.startGearman}, {"The operator", d.startOperator}}
	}
	for _, step := range slices.Concat([]step{{"A cluster", d.startCluster}}, start, []step{
		{"Builds, as Zuul sends them", d.sendBuilds},
		{"kubectl get zuulbuilds -o wide", d.showBuilds},
	}) {
		fmt.Printf("\n== %s\n", step.what)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", strings.ToLower(step.what[:1])+step.what[1:], err)
		}
	}
	if d.keep {
		d.explain()
	}
	return nil
}

// startCluster uses the cluster of KUBECONFIG where one is named, else starts one on this machine.
func (d *demo) startCluster(ctx context.Context) error {
	var err error
	if d.folder, err = os.MkdirTemp("", "zuulbuild-demo-"); err != nil {
		return err
	}
	if d.kubeconfig = os.Getenv("KUBECONFIG"); d.kubeconfig != "" {
		fmt.Println("using the cluster of KUBECONFIG", d.kubeconfig)
		d.image = publicImage
		d.kubectl, err = exec.LookPath("kubectl")
		return err
	}
	d.image = localImage
	cluster, err := localcluster.Open(d.cluster)
	if err != nil || cluster.Running() != nil {
		if cluster, err = localcluster.Up(ctx, localcluster.Options{Name: d.cluster, Log: os.Stdout}); err != nil {
			return err
		}
		d.cleanup = append(d.cleanup, func() {
			fmt.Println("\nStopping the cluster; make demo KEEP=1 leaves everything running")
			if err := cluster.Down(context.WithoutCancel(ctx)); err != nil {
				fmt.Fprintln(os.Stderr, "demo: stop the cluster:", err)
			}
		})
	} else {
		fmt.Println("using cluster", d.cluster, "which runs already")
		d.uninstall = true
	}
	d.local, d.kubeconfig, d.kubectl = cluster, cluster.Kubeconfig(), cluster.Kubectl()
	return d.kubectlRun(ctx, nil, "get", "nodes", "--label-columns=zuulbuild.dev/node")
}

// awaitDefinitions asks again where kubectl wait fails at once, as it does on a definition so new that it has no conditions.
func (d *demo) awaitDefinitions(ctx context.Context) error {
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := d.kubectlRun(ctx, nil, "wait", "--for=condition=Established", "--timeout=30s",
			"crd/zuulbuilds.zuulbuild.dev", "crd/zuuljobs.zuulbuild.dev", "crd/zuulnodeclasses.zuulbuild.dev")
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (d *demo) applyObjects(ctx context.Context) error {
	if err := d.kubectlRun(ctx, nil, "apply", "-k", "config/crd"); err != nil {
		return err
	}
	if err := d.awaitDefinitions(ctx); err != nil {
		return err
	}
	objects := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: %s\n  labels:\n    pod-security.kubernetes.io/enforce: restricted\n", namespace)
	if err := d.kubectlRun(ctx, []byte(objects), "apply", "-f", "-"); err != nil {
		return err
	}
	return d.applyJobs(ctx)
}

func (d *demo) applyJobs(ctx context.Context) error {
	for _, file := range []string{"jobs.yaml", "nodeclass.yaml"} {
		text, err := os.ReadFile(filepath.Join("config/samples", file))
		if err != nil {
			return err
		}
		text = bytes.ReplaceAll(text, []byte(localImage), []byte(d.image))
		if err := d.kubectlRun(ctx, text, "--namespace", namespace, "apply", "-f", "-"); err != nil {
			return err
		}
	}
	if d.local == nil {
		return nil
	}
	// Longer than a lease that an operator of an earlier run did not give back.
	return d.kubectlRun(ctx, nil, "--namespace", namespace, "wait", "--for=condition=Registered", "--timeout=60s", "zuuljobs", "--all")
}

func (d *demo) startGearman(context.Context) error {
	if d.gearman != "" {
		fmt.Println("using the server at", d.gearman)
		return nil
	}
	server, err := programs.Start(filepath.Join(d.folder, "gearman-server.log"), d.program, "gearman-server", "--listen", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.cleanup = append(d.cleanup, func() { server.Stop(5 * time.Second) })
	d.processes = append(d.processes, server.ID())
	line, err := server.AwaitLine("Serving Gearman at", 10*time.Second)
	if err != nil {
		return err
	}
	d.gearman = line[strings.LastIndex(line, " ")+1:]
	fmt.Println("serving at", d.gearman)
	return nil
}

func (d *demo) startOperator(context.Context) error {
	address, err := programs.FreeAddress()
	if err != nil {
		return err
	}
	d.pages = "http://" + address
	operator, err := programs.Start(filepath.Join(d.folder, "operator.log"), d.program, "operator", "--kubeconfig", d.kubeconfig,
		"--gearman-server", d.gearman, "--pages-address", address, "--pages-url", d.pages, "--health-address", "0", "--leader-elect=false")
	if err != nil {
		return err
	}
	d.cleanup = append(d.cleanup, func() { operator.Stop(30 * time.Second) })
	d.processes = append(d.processes, operator.ID())
	fmt.Printf("process %d, log %s\n", operator.ID(), operator.LogFile)
	return nil
}

func (d *demo) showBuilds(ctx context.Context) error {
	return d.kubectlRun(ctx, nil, "--namespace", namespace, "get", "zuulbuilds", "-o", "wide")
}

func (d *demo) explain() {
	fmt.Printf(`
Everything is left running. To look around:
  export KUBECONFIG=%s
  export PATH=%s:$PATH
  kubectl --namespace %s get zuulbuilds,zuuljobs,pods
  bin/zuulbuild submit --gearman %s unit-tests --node trusty --project sandbox
  pages: %s/     logs: %s
To end it: kill %s && make cluster-down
`, d.kubeconfig, filepath.Dir(d.kubectl), namespace, d.gearman, d.pages, d.folder, strings.Trim(fmt.Sprint(d.processes), "[]"))
}

// kubectlRun runs kubectl.
func (d *demo) kubectlRun(ctx context.Context, input []byte, arguments ...string) error {
	command := exec.CommandContext(ctx, d.kubectl, append([]string{"--kubeconfig", d.kubeconfig}, arguments...)...)
	command.Stdin = bytes.NewReader(input)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	if err := command.Run(); err != nil {
		return errors.Join(fmt.Errorf("kubectl %s", strings.Join(arguments, " ")), err)
	}
	return nil
}
