// Command zuulbuild runs Zuul v2 jobs as Kubernetes Pods: to a Gearman server it is one worker, to a cluster an operator.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "development"

func main() {
	root := &cobra.Command{
		Use:           "zuulbuild",
		Short:         "Run Zuul v2 jobs as Kubernetes Pods",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newOperatorCommand(), newSubmitCommand(), newGearmanServerCommand())
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "zuulbuild:", err)
		code := 1
		var withCode interface{ ExitCode() int }
		if errors.As(err, &withCode) {
			code = withCode.ExitCode()
		}
		os.Exit(code)
	}
}
