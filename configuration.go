package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/clientcmd"

	"zuulbuild.dev/zuulbuild/gearmanbridge"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/tracing"
)

// configuration is what the operator is to do, and all that is wrong with it.
type configuration struct {
	*settings
	servers  []gearmanbridge.Server
	warnings []string
	faults   []error
}

// configure reads what the command line, the environment and the files say, and looks for faults. It needs no cluster and no Gearman server.
func (o *operatorOptions) configure(flags *pflag.FlagSet, environ []string) *configuration {
	c := &configuration{}
	c.settings, c.warnings, c.faults = loadSettings(flags, environ)
	problems := o.problems()
	for _, option := range slices.Sorted(maps.Keys(problems)) {
		if problem := problems[option]; problem != nil {
			c.faults = append(c.faults, fmt.Errorf("%s: %w", c.where(option), problem))
		}
	}
	servers, faults := readServers(o.gearmanServers, o.gearmanServersFile, c.settings)
	c.servers, c.faults = servers, append(c.faults, faults...)
	return c
}

// problems are what is wrong with values of the right type, by option, nil where nothing is.
func (o *operatorOptions) problems() map[string]error {
	_, logLevel := o.level()
	_, pagesURL := o.buildURL()
	return map[string]error{
		"drain-timeout":     atLeast(o.drainTimeout, 0),
		"grace-period":      atLeast(o.gracePeriod, 0),
		"health-address":    listenable(o.healthAddress, true),
		"kubeconfig":        readableKubeconfig(o.kubeconfig),
		"leader-deployment": deploymentName(o.leaderDeployment),
		"leader-lease":      between(o.leaderLease, time.Second, longestLease),
		"leader-namespace":  namespaces(o.leaderNamespace),
		"log-level":         logLevel,
		"manager":           managerName(o.manager),
		"max-builds":        atLeast(o.maxBuilds, 1),
		"metrics-address":   listenable(o.metricsAddress, true),
		"metrics-cert-dir":  o.metricsCertificate(),
		"namespace":         namespaces(o.namespaces...),
		"pages-address":     listenable(o.pagesAddress, false),
		"pages-url":         pagesURL,
		"trace-endpoint":    tracing.CheckEndpoint(o.traceEndpoint),
	}
}

func atLeast[T int | time.Duration](value, least T) error {
	if value >= least {
		return nil
	}
	return fmt.Errorf("%v or more was expected, not %v", least, value)
}

func between(value, least, most time.Duration) error {
	if value >= least && value <= most {
		return nil
	}
	return fmt.Errorf("%v to %v was expected, not %v", least, most, value)
}

// listenable is nil for [HOST]:PORT, and for 0, which is nowhere, if that may be.
func listenable(address string, nowhere bool) error {
	if nowhere && address == "0" {
		return nil
	}
	_, port, err := net.SplitHostPort(address)
	if _, portErr := strconv.ParseUint(port, 10, 16); err == nil && portErr == nil {
		return nil
	}
	if nowhere {
		return fmt.Errorf("[HOST]:PORT was expected, or 0 for nowhere, not %q", address)
	}
	return fmt.Errorf("[HOST]:PORT was expected, not %q", address)
}

// namespaces is nil if each name can be that of a namespace, or is empty.
func namespaces(names ...string) error {
	for _, name := range names {
		if problems := validation.IsDNS1123Label(name); name != "" && len(problems) > 0 {
			return fmt.Errorf("%q cannot be a namespace: %s", name, strings.Join(problems, "; "))
		}
	}
	return nil
}

// deploymentName is nil for what can be the name of a Deployment, and for none.
func deploymentName(name string) error {
	problems := validation.IsDNS1123Subdomain(name)
	if len(problems) == 0 {
		problems = validation.IsValidLabelValue(name) // it labels the Leases
	}
	if name != "" && len(problems) > 0 {
		return fmt.Errorf("%q cannot be the name of a Deployment: %s", name, strings.Join(problems, "; "))
	}
	return nil
}

// managerName is nil for what can be the MANAGER of stop:MANAGER, and, with what the bridge puts behind it, a client id.
func managerName(name string) error {
	const longest = gearman.MaxClientID - len("_manager")
	if gearman.ValidFunctionName(name) != nil || strings.Contains(name, ":") || len(name) > longest {
		return fmt.Errorf("1 to %d printable ASCII characters were expected, without blanks and colons, not %q", longest, name)
	}
	return nil
}

func readableKubeconfig(path string) error {
	if path == "" {
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if _, err := clientcmd.Load(content); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// metricsCertificate is nil if there is the certificate that was asked for: in place of one that is missing, another would be made at the start.
func (o *operatorOptions) metricsCertificate() error {
	if o.metricsCertDir == "" {
		return nil
	}
	if !o.metricsSecure {
		return errors.New("a certificate is of no use without --metrics-secure")
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(o.metricsCertDir, "tls.crt"), filepath.Join(o.metricsCertDir, "tls.key")); err != nil {
		return fmt.Errorf("a certificate and its key were expected in %s as tls.crt and tls.key: %w", o.metricsCertDir, err)
	}
	return nil
}

// unreadable are what is wrong with the TLS files of Gearman servers, now. The operator starts all the same: it reads them for each connection.
func (c *configuration) unreadable() (faults []error) {
	for _, server := range c.servers {
		if server.TLS == nil {
			continue
		}
		if _, err := server.TLS(); err != nil {
			faults = append(faults, fmt.Errorf("server %s (%s): tls: %w", server.Name, server.Address, err))
		}
	}
	return faults
}

// allOf is one error of many, each on a line of its own; nil if there are none.
func allOf(faults []error) error {
	if len(faults) > 1 {
		return fmt.Errorf("%d faults in the configuration:\n%w", len(faults), errors.Join(faults...))
	}
	return errors.Join(faults...)
}

func newConfigCommand() *cobra.Command {
	command := &cobra.Command{Use: "config", Short: "Look at the configuration of the operator"}
	command.AddCommand(newConfigCheckCommand())
	return command
}

func newConfigCheckCommand() *cobra.Command {
	o := operatorOptions{}
	command := &cobra.Command{
		Use:   "check",
		Short: "Say what the operator would be started with, and what is wrong with it",
		Long: `Say what the operator would be started with by the same flags in the same environment: each option, its value and where
that comes from, and the Gearman servers. No cluster is asked, and no Gearman server.

Exit codes: 0 nothing is wrong; 1 something is, and standard error says what, each fault on a line. Among them are files of
TLS that cannot be used now, which would not keep the operator from starting.`,
		Example: `  zuulbuild config check --config zuulbuild.yaml
  kubectl --namespace zuulbuild-system exec deployment/zuulbuild -- /zuulbuild config check --config /etc/zuulbuild/config/zuulbuild.yaml`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c := o.configure(command.Flags(), os.Environ())
			for _, warning := range c.warnings {
				_, _ = fmt.Fprintln(command.ErrOrStderr(), "warning:", warning)
			}
			if err := c.print(command.OutOrStdout()); err != nil {
				return err
			}
			return allOf(append(c.faults, c.unreadable()...))
		},
	}
	o.addFlags(command.Flags())
	return command
}

// print tables of the options and of the Gearman servers.
func (c *configuration) print(to io.Writer) error {
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "OPTION\tVALUE\tFROM")
	eachOption(c.flags, func(option *pflag.Flag) {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", option.Name, legible(c.text(option.Name)), c.sources[option.Name])
	})
	if len(c.servers) > 0 {
		_, _ = fmt.Fprintln(table, "\nGEARMAN SERVER\tADDRESS\tTLS")
	}
	for _, server := range c.servers {
		security := "no"
		if server.TLS != nil {
			security = "yes"
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", server.Name, server.Address, security)
	}
	return table.Flush()
}

// legible quotes a value that is empty, or would not be seen as one word.
func legible(value string) string {
	strange := func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }
	if value == "" || strings.ContainsFunc(value, strange) {
		return strconv.Quote(value)
	}
	return value
}
