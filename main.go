// Command zuulbuild runs Zuul v2 jobs as Kubernetes Pods: to a Gearman server it is one worker, to a cluster an operator.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "development"

// pluginName is the name under which kubectl finds this program as `kubectl zuulbuild`.
const pluginName = "kubectl-zuulbuild"

// newRootCommand is the command of the program that was started by this path.
func newRootCommand(path string) *cobra.Command {
	root := &cobra.Command{
		Use:           "zuulbuild",
		Short:         "Run Zuul v2 jobs as Kubernetes Pods",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	if filepath.Base(path) == pluginName {
		root.Use, root.Short = pluginName, "Work with the builds that Zuul asked for"
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl zuulbuild"}
		root.AddCommand(newAbortCommand())
		return root
	}
	root.AddCommand(newOperatorCommand(), newConfigCommand(), newSubmitCommand(), newAbortCommand(), newGearmanServerCommand())
	return root
}

func main() {
	root := newRootCommand(os.Args[0])
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, root.Name()+":", err)
		code := 1
		var withCode interface{ ExitCode() int }
		if errors.As(err, &withCode) {
			code = withCode.ExitCode()
		}
		os.Exit(code)
	}
}
