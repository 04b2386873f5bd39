package main

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
)

// lookInterval is how often the file of --config is read again. A ConfigMap that is mounted as a folder takes the kubelet about a minute anyhow.
const lookInterval = 5 * time.Second

// reloader follows the file of --config while the operator works. What can be changed without a loss takes effect at once; of the rest the log says that
// it counts from the next start on. A file that is wrong changes nothing.
type reloader struct {
	running *configuration // what the file said when it was right last
	environ []string
	// apply has the operator work by an option from now on, for those it can.
	apply map[string]func(*operatorOptions)
	// ends tells whether this replica only ends what it has: the file may be one for those that come after it, which may be of another version.
	ends   func() bool
	logger *slog.Logger
	valid  prometheus.Gauge
	told   string // of what is wrong with the file now, so that it is told once
}

// newReloader counts itself among the metrics.
func newReloader(running *configuration, environ []string, apply map[string]func(*operatorOptions), ends func() bool, logger *slog.Logger,
	registry prometheus.Registerer,
) (*reloader, error) {
	r := &reloader{running: running, environ: environ, apply: apply, ends: ends, logger: logger, valid: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "zuulbuild_configuration_valid",
		Help: "Whether the file of --config, as it is now, can be taken: 1, or 0 if it has faults. The operator then works by what the file said before, and " +
			"would not start again; the log says what is wrong.",
	})}
	r.valid.Set(1)
	return r, registry.Register(r.valid)
}

// NeedLeaderElection is false: every replica follows the file.
func (r *reloader) NeedLeaderElection() bool { return false }

// Start looks until ctx is done.
func (r *reloader) Start(ctx context.Context) error {
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			r.look()
		}
	}
}

// look reads the file, and has the operator work by what it says.
func (r *reloader) look() {
	if r.ends() {
		r.valid.Set(1)
		return
	}
	o, c := r.running.again(r.environ)
	if err := allOf(c.faults); err != nil {
		r.valid.Set(0)
		if r.told != err.Error() {
			r.told = err.Error()
			r.logger.Error("The changed configuration is not taken: what counted before counts on, but the operator would not start again", "error", err)
		}
		return
	}
	r.valid.Set(1)
	r.told = ""
	var late []string
	for _, option := range r.running.differing(c) {
		if apply := r.apply[option]; apply != nil {
			apply(o)
			r.logger.Info("The configuration has changed", "option", option, "from", r.running.text(option), "to", c.text(option))
		} else {
			late = append(late, option)
		}
	}
	if len(late) > 0 {
		r.logger.Warn("The configuration has changed in what is read at the start alone: restart the operator, which loses no build", "options", strings.Join(late, ", "))
	}
	r.running = c
}

// again reads the same configuration once more: the flags as they were given, the environment, and the files as they are now.
func (c *configuration) again(environ []string) (*operatorOptions, *configuration) {
	o := &operatorOptions{}
	flags := pflag.NewFlagSet("operator", pflag.ContinueOnError)
	o.addFlags(flags)
	for option, from := range c.sources {
		if from != fromFlag {
			continue
		}
		for _, value := range valuesOf(c.flags.Lookup(option)) {
			_ = flags.Set(option, value) // which was right before
		}
	}
	return o, o.configure(flags, environ)
}

// differing are the names of the options that another configuration has another value of, sorted, and "servers" where it has other Gearman servers.
func (c *configuration) differing(other *configuration) []string {
	names := map[string]bool{}
	eachOption(c.flags, func(option *pflag.Flag) {
		if c.text(option.Name) != other.text(option.Name) {
			names[option.Name] = true
		}
	})
	if !bytes.Equal(c.settings.servers, other.settings.servers) {
		names["servers"] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// text is the value of an option, for people.
func (c *configuration) text(option string) string {
	return strings.Join(valuesOf(c.flags.Lookup(option)), ",")
}
