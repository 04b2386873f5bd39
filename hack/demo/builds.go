//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"text/tabwriter"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// wish is a build to send, and what should become of it.
type wish struct {
	title     string
	job, node string
	stop      bool
	expected  string // what Zuul should be told
}

var wishes = []wish{
	{title: "one that succeeds", job: "unit-tests", expected: "SUCCESS"},
	{title: "one that fails", job: "style", expected: "FAILURE"},
	{title: "one on another node class", job: "unit-tests", node: "trusty", expected: "SUCCESS"},
	{title: "one stopped half-way", job: "integration-tests", stop: true, expected: "ABORTED"},
}

// sendBuilds sends them all at once, follows them and shows how they ended.
func (d *demo) sendBuilds(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	client, err := zuulclient.Dial(ctx, d.gearman, nil, zuulclient.Zuul2)
	if err != nil {
		return err
	}
	defer client.Close()
	states, problems := make([]zuulclient.State, len(wishes)), make([]error, len(wishes))
	var running sync.WaitGroup
	for i, wish := range wishes {
		running.Go(func() { states[i], problems[i] = d.send(ctx, client, wish) })
	}
	running.Wait()

	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nASKED FOR\tFUNCTION\tNUMBER\tRAN ON\tZUUL WAS TOLD\tPAGE")
	for i, state := range states {
		fmt.Fprintf(table, "%s\t%s\t%v\t%s\t%s\t%s\n", wishes[i].title, state.Function, state.Number, state.NodeName, state.Result, state.URL)
		if problems[i] == nil && state.Result != wishes[i].expected {
			problems[i] = fmt.Errorf("%s: Zuul was told %q rather than %q", wishes[i].title, state.Result, wishes[i].expected)
		}
		if problems[i] == nil && wishes[i].node != "" {
			problems[i] = d.checkNode(ctx, state.NodeName, wishes[i].node)
		}
		for _, violation := range state.Violations {
			problems[i] = errors.Join(problems[i], fmt.Errorf("%s: %v", wishes[i].title, violation))
		}
	}
	return errors.Join(table.Flush(), errors.Join(problems...))
}

// checkNode asks the cluster whether a node is of a class.
func (d *demo) checkNode(ctx context.Context, node, class string) error {
	labels, err := exec.CommandContext(ctx, d.kubectl, "--kubeconfig", d.kubeconfig, "get", "node", node,
		"-o", `jsonpath={.metadata.labels.zuulbuild\.dev/node}`).Output()
	if err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	if string(labels) != class {
		return fmt.Errorf("node %s is of class %q rather than %q", node, labels, class)
	}
	return nil
}

func (d *demo) send(ctx context.Context, client *zuulclient.Client, wish wish) (zuulclient.State, error) {
	function := "build:" + wish.job
	if wish.node != "" {
		function += ":" + wish.node
	}
	if err := client.AwaitRegistered(ctx, function); err != nil {
		return zuulclient.State{Function: function}, err
	}
	build, err := client.Submit(ctx, zuulclient.Request{Job: wish.job, Node: wish.node, Parameters: map[string]any{
		"ZUUL_PROJECT": "sandbox", "ZUUL_PIPELINE": "check", "ZUUL_BRANCH": "master", "ZUUL_CHANGE": "4711", "ZUUL_PATCHSET": "2",
		"ZUUL_REF": "refs/zuul/master/Z0123456789abcdef", "ZUUL_COMMIT": "0123456789abcdef0123456789abcdef01234567",
	}})
	if err != nil {
		return zuulclient.State{Function: function}, err
	}
	// The second WORK_DATA names the node: the containers run.
	state, err := build.Await(ctx, func(s zuulclient.State) bool { return len(s.Packets) > 2 })
	if err == nil {
		fmt.Printf("%-40s runs as number %v: %s\n", state.Function, state.Number, state.URL)
	}
	if err == nil && wish.stop {
		if _, err := build.Cancel(ctx); err != nil {
			return state, err
		}
		fmt.Printf("%-40s stop: sent\n", state.Function)
	}
	state, err = build.Wait(ctx)
	fmt.Printf("%-40s ended: %s\n", state.Function, state.Result)
	return state, err
}
