//go:build linux

// Command cmd runs local Kubernetes clusters for development and tests; package localcluster says how they are made.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"zuulbuild.dev/zuulbuild/hack/localcluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := rootCommand().ExecuteContext(ctx)
	stop() // os.Exit would skip a deferred call
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "localcluster", Short: "Run real Kubernetes clusters on this machine, without Docker or a registry",
		SilenceUsage: true, SilenceErrors: true,
	}
	name := root.PersistentFlags().String("name", localcluster.DefaultName, "name of the cluster; several run side by side")
	root.AddCommand(upCommand(name), downCommand(name), listCommand(), kubeconfigCommand(name), imageCommand(name), execCommand(name),
		packagesCommand(), assetsCommand(), toolsCommand())
	return root
}

func upCommand(name *string) *cobra.Command {
	var options localcluster.Options
	var labels []string
	var fresh bool
	command := &cobra.Command{
		Use: "up", Short: "Start a cluster, unless it runs already, and return when it is ready", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) (err error) {
			options.Name, options.Log = *name, command.ErrOrStderr()
			if options.NodeLabels, err = parseNodeLabels(labels); err != nil {
				return err
			}
			start := localcluster.Ensure
			if fresh {
				start = localcluster.Up
			}
			cluster, err := start(command.Context(), options)
			if err != nil {
				return err
			}
			return announce(command, cluster)
		},
	}
	flags := command.Flags()
	flags.IntVar(&options.Nodes, "nodes", 2, "number of real nodes")
	flags.IntVar(&options.KwokNodes, "kwok-nodes", 0, "number of simulated nodes")
	flags.BoolVar(&options.Audit, "audit", false, "keep an audit log of all API requests")
	flags.StringArrayVar(&labels, "node-label", nil, "label of a node, as NODE=KEY=VALUE; replaces that node's default "+localcluster.NodeLabel+"; repeatable")
	flags.BoolVar(&fresh, "fresh", false, "start anew even if the cluster runs")
	return command
}

// parseNodeLabels reads NODE=KEY=VALUE.
func parseNodeLabels(arguments []string) (map[string]map[string]string, error) {
	labels := map[string]map[string]string{}
	for _, argument := range arguments {
		parts := strings.SplitN(argument, "=", 3)
		if len(parts) != 3 || parts[0] == "" || parts[1] == "" {
			return nil, fmt.Errorf("--node-label %q: want NODE=KEY=VALUE, as in node-1=%s=precise", argument, localcluster.NodeLabel)
		}
		if labels[parts[0]] == nil {
			labels[parts[0]] = map[string]string{}
		}
		labels[parts[0]][parts[1]] = parts[2]
	}
	return labels, nil
}

func announce(command *cobra.Command, cluster *localcluster.Cluster) error {
	_, err := fmt.Fprintf(command.OutOrStdout(), "export KUBECONFIG=\"%s\"\nexport PATH=\"%s:$PATH\"\n", cluster.Kubeconfig(), filepath.Dir(cluster.Kubectl()))
	return err
}

func downCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Stop a cluster and remove everything it left; none is fine", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return localcluster.Down(command.Context(), *name) },
	}
}

func listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the clusters", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			names, err := localcluster.List()
			if err != nil {
				return err
			}
			table := tabwriter.NewWriter(command.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "NAME\tSTATE\tKUBECONFIG")
			for _, name := range names {
				cluster, err := localcluster.Open(name)
				if err != nil {
					return err
				}
				state := "running"
				if err := cluster.Running(); err != nil {
					state = err.Error()
				}
				fmt.Fprintf(table, "%s\t%s\t%s\n", name, state, cluster.Kubeconfig())
			}
			return table.Flush()
		},
	}
}

func kubeconfigCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use: "kubeconfig", Short: "Print the path of an administrator's kubeconfig", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			cluster, err := localcluster.Open(*name)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(command.OutOrStdout(), cluster.Kubeconfig())
			return err
		},
	}
}

func imageCommand(name *string) *cobra.Command {
	image := &cobra.Command{Use: "image", Short: "Images on the nodes"}
	image.AddCommand(&cobra.Command{
		Use: "import FILE...", Short: "Put the images of archives (docker-archive or OCI layout) on every node", Args: cobra.MinimumNArgs(1),
		RunE: func(command *cobra.Command, files []string) error {
			cluster, err := localcluster.Open(*name)
			if err != nil {
				return err
			}
			for _, file := range files {
				if err := cluster.ImportImage(command.Context(), file); err != nil {
					return err
				}
			}
			return nil
		},
	})
	return image
}

func execCommand(name *string) *cobra.Command {
	command := &cobra.Command{
		Use: "exec NODE COMMAND...", Short: "Run a program of the host inside a node (node-1, ...)", Args: cobra.MinimumNArgs(2),
		RunE: func(command *cobra.Command, arguments []string) error {
			cluster, err := localcluster.Open(*name)
			if err != nil {
				return err
			}
			for _, node := range cluster.Nodes() {
				if node.Name() == arguments[0] {
					inside := node.Command(command.Context(), arguments[1:]...)
					return runAttached(inside)
				}
			}
			return fmt.Errorf("cluster %s has no node %s", *name, arguments[0])
		},
	}
	command.Flags().SetInterspersed(false) // flags after NODE are the program's
	return command
}

func runAttached(command *exec.Cmd) error {
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	return command.Run()
}

func packagesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "packages [MORE...]", Short: "Install the Debian packages that clusters and tests need, and others",
		RunE: func(command *cobra.Command, more []string) error {
			return localcluster.InstallPackages(command.Context(), command.ErrOrStderr(), more...)
		},
	}
}

func assetsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "assets", Short: "Build etcd, kube-apiserver and kubectl and print their folder, for KUBEBUILDER_ASSETS", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			folder, err := localcluster.BuildAssets(command.Context(), command.ErrOrStderr())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(command.OutOrStdout(), folder)
			return err
		},
	}
}

func toolsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tools [NAME...]", Short: "Build every program that a cluster may need, or those that are named", Args: cobra.ArbitraryArgs,
		RunE: func(command *cobra.Command, names []string) error {
			if len(names) > 0 {
				return localcluster.BuildTools(command.Context(), command.ErrOrStderr(), names...)
			}
			return localcluster.BuildAll(command.Context(), command.ErrOrStderr())
		},
	}
}
