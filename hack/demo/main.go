//go:build linux

// Command demo shows the whole: a real cluster, a Gearman server, zuulbuild as its chart installs it, and a few builds sent as Zuul sends them. It ends with what was asked,
// where it ran and what Zuul was told, and fails where that is not what it should be.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	d := &demo{}
	flag.BoolVar(&d.keep, "keep", false, "leave everything running and say how to look around")
	flag.StringVar(&d.gearman, "gearman", "", "HOST:PORT of a Gearman server to use; default: one of its own")
	flag.StringVar(&d.program, "program", "bin/zuulbuild", "the program to show")
	flag.StringVar(&d.cluster, "cluster", "zuulbuild", "name of the local cluster, where KUBECONFIG names no other")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := d.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}
