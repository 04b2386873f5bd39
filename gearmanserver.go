package main

import (
	"fmt"
	"log/slog"
	"net"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// newGearmanServerCommand serves Gearman from memory, for demos and tests: where Zuul is, its own server or gearmand is there already.
func newGearmanServerCommand() *cobra.Command {
	var listen, behaviour string
	command := &cobra.Command{
		Use:   "gearman-server",
		Short: "Serve Gearman from memory, for a demo or a test",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			server := &gearman.Server{Logger: slog.Default()}
			switch behaviour {
			case "gearmand":
				server.Behaviour = gearman.Gearmand
			case "geard":
				server.Behaviour = gearman.Geard
			default:
				return fmt.Errorf("--behaviour %q: gearmand or geard was expected", behaviour)
			}
			listener, err := (&net.ListenConfig{}).Listen(command.Context(), "tcp", listen)
			if err != nil {
				return fmt.Errorf("--listen %s: %w", listen, err)
			}
			_, _ = fmt.Fprintf(command.OutOrStdout(), "Serving Gearman at %s\n", listener.Addr())
			ctx, stop := signal.NotifyContext(command.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			go func() {
				<-ctx.Done()
				_ = server.Close()
			}()
			if err := server.Serve(listener); ctx.Err() == nil {
				return err
			}
			return nil
		},
	}
	command.Flags().StringVar(&listen, "listen", "127.0.0.1:4730", "address to listen at; Gearman has no authentication, so mind who can reach it")
	command.Flags().StringVar(&behaviour, "behaviour", "gearmand", "behave like gearmand (the C server) or geard (Zuul's own)")
	return command
}
