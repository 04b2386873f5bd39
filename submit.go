package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// The exit codes of `zuulbuild submit` but 0, which is SUCCESS.
const (
	exitOtherResult   = 1   // any result but SUCCESS, also of a build that was stopped
	exitUsage         = 2   // a flag, the job's name or a file is wrong
	exitNoResult      = 3   // the build ended without a result: Zuul would retry it
	exitNotRegistered = 4   // no worker offers the job
	exitTrouble       = 5   // the connection failed, or the worker broke the protocol
	exitTimeout       = 124 // --timeout passed, as of timeout(1)
	exitInterrupted   = 130 // interrupted before the build's end, as of a shell
)

// exitError is an error that says what the program shall exit with.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string { return e.err.Error() }
func (e exitError) Unwrap() error { return e.err }

// ExitCode returns the exit code of the program, never 0.
func (e exitError) ExitCode() int { return e.code }

func usageError(format string, args ...any) error {
	return exitError{exitUsage, fmt.Errorf(format, args...)}
}

// submitOptions are the flags of `zuulbuild submit`.
type submitOptions struct {
	server                                string
	tlsCA, tlsCert, tlsKey, tlsServerName string
	node, uuid                            string
	parameters                            []string
	parametersFile                        string
	precedence, dialect, output           string
	stops                                 bool // --stop-after was given
	stopAfter, timeout                    time.Duration
	noWaitRegistered, quiet               bool
}

// zuulFlags are flags for the parameters Zuul sends with most builds.
var zuulFlags = []struct{ flag, parameter, usage string }{
	{"project", "ZUUL_PROJECT", "project of the change"},
	{"change", "ZUUL_CHANGE", "number of the change"},
	{"patchset", "ZUUL_PATCHSET", "number of the patch set"},
	{"branch", "ZUUL_BRANCH", "target branch of the change"},
	{"pipeline", "ZUUL_PIPELINE", "pipeline that launches the build"},
	{"ref", "ZUUL_REF", "Git ref to build"},
	{"commit", "ZUUL_COMMIT", "commit at the head of --ref"},
}

// newSubmitCommand submits a build as Zuul does and follows it to its end.
func newSubmitCommand() *cobra.Command {
	o := &submitOptions{}
	command := &cobra.Command{
		Use:   "submit JOB",
		Short: "Submit a build as Zuul does and follow it to its end",
		Long: `Submit a build of JOB to a Gearman server as Zuul does, show its progress on standard error and its result on
standard output. Whatever worker offers build:JOB there runs it; this needs no cluster and no rights in one.

Ctrl-C stops the build as Zuul would, and a second one leaves at once.

Exit codes: 0 SUCCESS; 1 any other result; 2 wrong usage; 3 no result, Zuul would retry; 4 no worker offers the job;
5 the connection failed or the worker broke the protocol; 124 --timeout passed; 130 left before the end.`,
		Example: `  zuulbuild submit unit-tests
  zuulbuild submit unit-tests --node large --project tools/demo --branch main --change 1234 --patchset 2 -p GREETING=hello
  zuulbuild submit unit-tests --parameters-file build.json --output json --quiet`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError("submit needs the name of one JOB, not %d arguments; see zuulbuild submit --help", len(args))
			}
			return nil
		},
		RunE: func(command *cobra.Command, args []string) error {
			o.stops = command.Flags().Changed("stop-after")
			return o.run(command, args[0])
		},
	}
	command.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError("%w; see zuulbuild submit --help", err)
	})
	o.addFlags(command)
	return command
}

func (o *submitOptions) addFlags(command *cobra.Command) {
	server := os.Getenv("GEARMAN")
	if server == "" {
		server = "localhost:4730"
	}
	flags := command.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.server, "gearman", server, "HOST[:PORT] of the Gearman server; $GEARMAN if set")
	flags.StringVar(&o.tlsCA, "tls-ca", "", "file of certificates to verify the server with; this and the other --tls-* turn TLS on")
	flags.StringVar(&o.tlsCert, "tls-cert", "", "file of the client's certificate")
	flags.StringVar(&o.tlsKey, "tls-key", "", "file of the client's key")
	flags.StringVar(&o.tlsServerName, "tls-server-name", "", "name in the server's certificate, if it is not the host of --gearman")
	flags.StringVar(&o.node, "node", "", "node or class of nodes to run on (ZUUL_NODE)")
	flags.StringArrayVarP(&o.parameters, "parameter", "p", nil, "KEY=VALUE for the build; may be given more than once")
	flags.StringVar(&o.parametersFile, "parameters-file", "", "file of a JSON object of parameters, - for standard input; the other flags win over it")
	for _, zuul := range zuulFlags {
		flags.String(zuul.flag, "", zuul.usage+" ("+zuul.parameter+")")
	}
	flags.StringVar(&o.uuid, "uuid", "", "UUID of the build (ZUUL_UUID); default: a new one, whatever --parameters-file has")
	flags.StringVar(&o.precedence, "precedence", "normal", "precedence of the pipeline: high, normal or low")
	flags.StringVar(&o.dialect, "dialect", "zuul2", "zuul2, of every release, or branch, of the development branch before 2.0.0")
	flags.DurationVar(&o.stopAfter, "stop-after", 0, "stop the build as Zuul does, this long after its start")
	flags.DurationVar(&o.timeout, "timeout", 0, "give up after this long: stop the build and exit with 124; 0 for never")
	flags.BoolVar(&o.noWaitRegistered, "no-wait-registered", false, "do not give workers time, as Zuul does after a start, to register the job")
	flags.StringVarP(&o.output, "output", "o", "text", "text, or json for one object with everything at the end")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
}

// read makes of the flags what is to be submitted. Its errors are of usage.
func (o *submitOptions) read(command *cobra.Command, job string) (*submission, error) {
	s := &submission{options: o}
	var err error
	if s.dialect, err = zuulclient.ParseDialect(o.dialect); err != nil {
		return nil, usageError("--dialect: %w", err)
	}
	if o.output != "text" && o.output != "json" {
		return nil, usageError("--output %q: it is text or json", o.output)
	}
	if o.timeout < 0 || o.stopAfter < 0 {
		return nil, usageError("--timeout and --stop-after cannot be negative")
	}
	if s.tls, err = o.readTLS(); err != nil {
		return nil, err
	}
	s.request = zuulclient.Request{Job: job, Node: o.node, UUID: o.uuid, Unchecked: true}
	if s.request.Precedence, err = parsePrecedence(o.precedence); err != nil {
		return nil, err
	}
	if s.request.Parameters, err = o.readParameters(command); err != nil {
		return nil, err
	}
	if s.request.UUID == "" {
		s.request.UUID = zuulclient.NewUUID()
	}
	// gearmand refuses a longer unique.
	if len(s.request.UUID) > 64 || gearman.ValidFunctionName(s.request.UUID) != nil {
		return nil, usageError("--uuid %q: at most 64 printable ASCII characters without blanks are allowed", o.uuid)
	}
	if err := gearman.ValidFunctionName(s.request.Function()); err != nil {
		return nil, usageError("JOB and --node: %w", err)
	}
	return s, nil
}

func parsePrecedence(name string) (gearman.Priority, error) {
	switch name {
	case "high":
		return gearman.PriorityHigh, nil
	case "normal":
		return gearman.PriorityNormal, nil
	case "low":
		return gearman.PriorityLow, nil
	}
	return 0, usageError("--precedence %q: it is high, normal or low", name)
}

// readTLS returns nil if no flag asks for TLS.
func (o *submitOptions) readTLS() (*tls.Config, error) {
	if o.tlsCA == "" && o.tlsCert == "" && o.tlsKey == "" && o.tlsServerName == "" {
		return nil, nil
	}
	files := gearman.TLSFiles{CAFile: o.tlsCA, CertFile: o.tlsCert, KeyFile: o.tlsKey, ServerName: o.tlsServerName}
	config, err := files.Config()
	if err != nil {
		return nil, usageError("--tls-ca, --tls-cert, --tls-key: %w", err)
	}
	return config, nil
}

// readParameters puts the file, the flags of zuulFlags and --parameter together,
// the later over the earlier.
func (o *submitOptions) readParameters(command *cobra.Command) (map[string]any, error) {
	parameters, err := readParametersFile(o.parametersFile, command.InOrStdin())
	if err != nil {
		return nil, usageError("--parameters-file %s: %w", o.parametersFile, err)
	}
	// A recorded build must become a new one: equal UUIDs are the same build.
	delete(parameters, "ZUUL_UUID")
	flags := command.Flags()
	for _, zuul := range zuulFlags {
		if flags.Changed(zuul.flag) {
			parameters[zuul.parameter], _ = flags.GetString(zuul.flag)
		}
	}
	if flags.Changed("change") && flags.Changed("patchset") {
		addChange(parameters)
	}
	for _, parameter := range o.parameters {
		key, value, found := strings.Cut(parameter, "=")
		if !found || key == "" {
			return nil, usageError("--parameter %q: KEY=VALUE was expected", parameter)
		}
		if key == "ZUUL_UUID" || key == "ZUUL_NODE" {
			return nil, usageError("--parameter %s: use --%s", key, strings.ToLower(strings.TrimPrefix(key, "ZUUL_")))
		}
		parameters[key] = value
	}
	return parameters, nil
}

func readParametersFile(name string, standardInput io.Reader) (map[string]any, error) {
	parameters := make(map[string]any)
	if name == "" {
		return parameters, nil
	}
	var content []byte
	var err error
	if name == "-" {
		content, err = io.ReadAll(standardInput)
	} else {
		content, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.UseNumber() // numbers go out as they came in
	if err := decoder.Decode(&parameters); err != nil {
		return nil, fmt.Errorf("a JSON object was expected: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) || parameters == nil {
		return nil, errors.New("one JSON object was expected")
	}
	return parameters, nil
}

// addChange adds what Zuul derives of a change that depends on no other.
func addChange(parameters map[string]any) {
	text := func(key string) string { value, _ := parameters[key].(string); return value }
	change, patchset := text("ZUUL_CHANGE"), text("ZUUL_PATCHSET")
	derived := map[string]any{"ZUUL_CHANGE_IDS": change + "," + patchset}
	if project, branch := text("ZUUL_PROJECT"), text("ZUUL_BRANCH"); project != "" && branch != "" {
		shard := "0" + change // Gerrit's: the last two digits
		derived["ZUUL_CHANGES"] = fmt.Sprintf("%s:%s:refs/changes/%s/%s/%s", project, branch, shard[len(shard)-min(2, len(shard)):], change, patchset)
	}
	maps.Copy(parameters, derived)
}

// run submits, follows and reports.
func (o *submitOptions) run(command *cobra.Command, job string) error {
	s, err := o.read(command, job)
	if err != nil {
		return err
	}
	s.progress = newProgress(command.ErrOrStderr(), o.quiet)
	state, err := s.run(command.Context())
	s.progress.clear()
	if o.output == "json" {
		if err := s.writeJSON(command.OutOrStdout(), state, err); err != nil {
			return exitError{exitTrouble, fmt.Errorf("write the result: %w", err)}
		}
		return err
	}
	if state.Ended() {
		if _, err := fmt.Fprintln(command.OutOrStdout(), resultLine(state)); err != nil {
			return exitError{exitTrouble, fmt.Errorf("write the result: %w", err)}
		}
	}
	return err
}

// submitReport is what --output json prints, also if nothing could be
// submitted. The fields of State stand beside the others.
type submitReport struct {
	Server     string             `json:"server"`
	Dialect    zuulclient.Dialect `json:"dialect"`
	Parameters map[string]any     `json:"parameters"`
	zuulclient.State
	DurationSeconds  float64 `json:"durationSeconds,omitempty"`
	EstimatedSeconds float64 `json:"estimatedSeconds,omitempty"`
	ExitCode         int     `json:"exitCode"`
	Error            string  `json:"error,omitempty"`
}

func (s *submission) writeJSON(w io.Writer, state zuulclient.State, result error) error {
	report := submitReport{Server: s.options.server, Dialect: s.dialect, Parameters: s.request.Parameters, State: state}
	if report.Violations == nil {
		report.Violations = []zuulclient.Violation{}
	}
	if report.Packets == nil {
		report.Packets = []zuulclient.Packet{}
	}
	if !state.Started.IsZero() && !state.Completed.IsZero() {
		report.DurationSeconds = state.Completed.Sub(state.Started).Seconds()
	}
	report.EstimatedSeconds = state.Estimated.Seconds()
	var exit exitError
	if errors.As(result, &exit) {
		report.ExitCode, report.Error = exit.code, exit.Error()
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(report)
}

// errTimeout is the cause of contexts that --timeout ended.
var errTimeout = errors.New("--timeout passed")

// whyEnded is the exit code for an error before the build was submitted.
func whyEnded(ctx context.Context, err error) int {
	switch {
	case errors.Is(err, zuulclient.ErrNotRegistered):
		return exitNotRegistered
	case ctx.Err() == nil:
		return exitTrouble
	case errors.Is(context.Cause(ctx), errTimeout):
		return exitTimeout
	}
	return exitInterrupted
}
