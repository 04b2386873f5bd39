package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildnumber"
	"zuulbuild.dev/zuulbuild/buildpages"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/controllers"
	"zuulbuild.dev/zuulbuild/gearmanbridge"
	"zuulbuild.dev/zuulbuild/tracing"
)

var noMetrics = metricsserver.Options{BindAddress: "0"}

// operatorOptions are the options of `zuulbuild operator`.
type operatorOptions struct {
	configFile         string
	kubeconfig         string
	namespaces         []string
	gearmanServers     []string
	gearmanServersFile string
	manager            string
	maxBuilds          int
	gracePeriod        time.Duration
	drainTimeout       time.Duration
	pagesAddress       string
	pagesURL           string
	healthAddress      string
	metricsAddress     string
	metricsSecure      bool
	metricsCertDir     string
	metricsByJob       bool
	traceEndpoint      string
	leaderElect        bool
	leaderDeployment   string
	leaderNamespace    string
	leaderLease        time.Duration
	logLevel           string
}

func newOperatorCommand() *cobra.Command {
	o := operatorOptions{}
	command := &cobra.Command{
		Use:   "operator",
		Short: "Take builds from Gearman servers and run them as Pods",
		Long: `Take builds from Gearman servers and run them as Pods.

Every option is a flag, an environment variable (--max-builds is ZUULBUILD_OPERATOR_MAX_BUILDS) and a key in the file of
--config (max-builds: 100), in this order of precedence. See docs/configuration.md, and zuulbuild config check.

Servers come from --gearman-server and from the file of --gearman-servers, which can also tell TLS. The file of --config
may have the same list:

  servers:
  - name: zuul                            # default: the host, or HOST-PORT unless the port is 4730
    address: gearman.example.org:4730     # HOST[:PORT]
    tls:                                  # without it, plain text
      caFile: /etc/zuulbuild/zuul/ca.crt  # default: the authorities of this machine
      certFile: /etc/zuulbuild/zuul/tls.crt
      keyFile: /etc/zuulbuild/zuul/tls.key
      serverName: gearman                 # in the server's certificate; default: the host

A server's name labels its builds (zuulbuild.dev/gearman-server), so it must not change while they run: give one where
the address may change. The files of tls are read for each connection, so certificates may be rotated at any time. TLS 1.2
is the least that is spoken; geard, which speaks TLS 1.0, needs a tunnel.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c := o.configure(command.Flags(), os.Environ())
			if err := allOf(c.faults); err != nil {
				return err
			}
			return o.run(command.Context(), c)
		},
	}
	o.addFlags(command.Flags())
	return command
}

func (o *operatorOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.configFile, "config", "", "YAML file of these options and of Gearman servers, see docs/configuration.md")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "cluster to work on; default: $KUBECONFIG, the cluster this runs in, or ~/.kube/config")
	flags.StringArrayVar(&o.namespaces, "namespace", nil, "namespace of the jobs and builds to see to; may be given more than once; default: all")
	flags.StringArrayVar(&o.gearmanServers, "gearman-server", nil, "[NAME=]HOST[:PORT] of a Gearman server to take builds from; may be given more than once")
	flags.StringVar(&o.gearmanServersFile, "gearman-servers", "", "YAML file with a list of Gearman servers, for TLS; the file of --config may have that list too")
	flags.StringVar(&o.manager, "manager", "zuulbuild", "the MANAGER of stop:MANAGER: the name of this cluster to Zuul, the same in every replica")
	flags.IntVar(&o.maxBuilds, "max-builds", 100, "how many builds may be at work at once; what is above waits")
	flags.DurationVar(&o.gracePeriod, "grace-period", time.Minute, "how long builds run on while the Gearman server that lost their jobs with a connection cannot be asked for them")
	flags.DurationVar(&o.drainTimeout, "drain-timeout", time.Hour, "how long running builds may take to end after SIGTERM; a second signal ends at once")
	flags.StringVar(&o.pagesAddress, "pages-address", ":8080", "where the build pages are served")
	flags.StringVar(&o.pagesURL, "pages-url", "http://localhost:8080", "the address people reach the build pages at; Zuul reports it")
	flags.StringVar(&o.healthAddress, "health-address", ":8081", "where /healthz and /readyz are served; 0 for nowhere")
	flags.StringVar(&o.metricsAddress, "metrics-address", "0", "where metrics are served, see docs/metrics.md; 0 for nowhere")
	flags.BoolVar(&o.metricsSecure, "metrics-secure", false, "serve metrics by HTTPS, and only to who may get /metrics: the API server is asked; false for plain HTTP to everybody")
	flags.StringVar(&o.metricsCertDir, "metrics-cert-dir", "", "folder with tls.crt and tls.key for --metrics-secure; default: a certificate that is made at the start and signed by itself")
	flags.BoolVar(&o.metricsByJob, "metrics-by-job", false, "give the metrics that are about builds a label zuul_job: about 75 series for each job and node class")
	flags.StringVar(&o.traceEndpoint, "trace-endpoint", "", "address of the OpenTelemetry collector (OTLP over HTTP) that gets a trace of each build, see docs/tracing.md; default: $OTEL_EXPORTER_OTLP_ENDPOINT, or none")
	flags.BoolVar(&o.leaderElect, "leader-elect", true, "have one of several replicas lead, see docs/replicas.md; false where there is only this one")
	flags.StringVar(&o.leaderDeployment, "leader-deployment", "", "Deployment of the replicas, in the namespace of the lease, which is called after it: their Leases go when it is deleted")
	flags.StringVar(&o.leaderNamespace, "leader-namespace", "", "namespace of the lease; default: the one this runs in")
	flags.DurationVar(&o.leaderLease, "leader-lease", 3*time.Second, "how long after the leader has died another one leads; it is renewed six times as often; 1s to 15s")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
}

// run works until it is told to end, drains, and ends.
func (o *operatorOptions) run(ctx context.Context, c *configuration) error {
	level, err := o.level()
	if err != nil {
		return err
	}
	logger, verbosity := newLogger(level)
	for _, warning := range c.warnings {
		logger.Warn("The configuration may have a mistake: " + warning)
	}
	buildURL, err := o.buildURL()
	if err != nil {
		return err
	}
	config, err := o.config()
	if err != nil {
		return err
	}
	mgr, err := o.newManager(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	maxBuilds := capacity.NewCeiling(o.maxBuilds)
	lead, numbers, err := o.setup(ctx, mgr, c.servers, maxBuilds, buildURL, logger)
	if err != nil {
		return err
	}
	if o.configFile != "" {
		reloader, err := newReloader(c, os.Environ(), map[string]func(*operatorOptions){
			"max-builds": func(now *operatorOptions) { maxBuilds.Set(now.maxBuilds) },
			"log-level": func(now *operatorOptions) {
				if level, err := now.level(); err == nil {
					verbosity.Set(level)
				}
			},
		}, lead.drains, logger, metrics.Registry)
		if err := errors.Join(err, mgr.Add(reloader)); err != nil {
			return err
		}
	}
	if lead.bridge.Tracer, err = tracing.New(ctx, o.traceEndpoint, version, logger); err != nil {
		return err
	}
	defer lead.bridge.Tracer.Close(ctx)
	if err := mgr.Add(manager.RunnableFunc(lead.Start)); err != nil {
		return err
	}
	go o.drainOnSignal(ctx, cancel, lead)
	err = startManager(ctx, mgr, managerEnd)
	release, cancelRelease := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancelRelease()
	return errors.Join(err, numbers.Release(release))
}

// managerEnd is how long the manager may take to end: longer than it waits for its parts (manager.Options.GracefulShutdownTimeout).
const managerEnd = 40 * time.Second

// startManager has the manager run until ctx is done. One whose caches have not been filled, for want of a right or of a namespace, never ends then, and
// keeps a processor busy: controller-runtime waits for them without looking at the context again.
func startManager(ctx context.Context, mgr manager.Manager, end time.Duration) error {
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(end):
		return fmt.Errorf("not everything has ended within %v; was there something that could not be read from the API server?", end)
	}
}

// setup wires the two halves and the pages to the manager, but for the controllers, which are the leader's.
func (o *operatorOptions) setup(ctx context.Context, mgr ctrl.Manager, servers []gearmanbridge.Server, maxBuilds *capacity.Ceiling,

	buildURL func(*v1alpha1.ZuulBuild) string, logger *slog.Logger,
) (*leadership, *buildnumber.Sequence, error) {
	if err := buildnumber.SetupIndex(ctx, mgr.GetFieldIndexer()); err != nil {
		return nil, nil, err
	}
	numbers := &buildnumber.Sequence{Client: mgr.GetClient(), Live: mgr.GetAPIReader()}
	builds, err := capacity.Watch(ctx, mgr.GetCache())
	if err != nil {
		return nil, nil, err
	}
	pods, err := controllers.WatchPods(ctx, mgr.GetCache())
	if err != nil {
		return nil, nil, err
	}
	counts, err := controllers.NewMetrics(metrics.Registry, o.metricsByJob)
	if err != nil {
		return nil, nil, err
	}
	if err := controllers.SetupIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		return nil, nil, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, nil, err
	}
	bridge := &gearmanbridge.Bridge{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Numbers: numbers, Builds: builds, Servers: servers, Manager: o.manager,
		MaxBuilds: maxBuilds, GracePeriod: o.gracePeriod, BuildURL: buildURL, Logger: logger, Metrics: metrics.Registry,
		Worker: gearmanbridge.WorkerInfo{Hostname: hostname, FQDN: hostname, Version: version},
	}
	lead := &leadership{manager: mgr, bridge: bridge, numbers: numbers, logger: logger, setup: func(_ context.Context, term ctrl.Manager) error {
		reconciler := &controllers.ZuulBuildReconciler{
			Client: term.GetClient(), Live: term.GetAPIReader(), Numbers: numbers, Builds: builds, Pods: pods, MaxBuilds: maxBuilds, BuildURL: buildURL,
			Recorder: term.GetEventRecorder("zuulbuild"), Clock: clock.RealClock{}, Metrics: counts,
		}
		return reconciler.SetupWithManager(term)
	}}
	if err := o.setupReplicas(ctx, mgr, lead, hostname); err != nil {
		return nil, nil, err
	}
	if err := bridge.SetupWithManager(ctx, mgr); err != nil {
		return nil, nil, err
	}
	err = mgr.AddReadyzCheck("registered", func(*http.Request) error {
		if !bridge.Ready() {
			return errors.New("not every function is registered on every Gearman server yet")
		}
		return nil
	})
	return lead, numbers, errors.Join(err, o.setupPages(ctx, mgr))
}

func (o *operatorOptions) setupPages(ctx context.Context, mgr ctrl.Manager) error {
	if err := buildpages.SetupIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	clientset, err := kubernetes.NewForConfig(mgr.GetConfig())
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.pagesAddress)
	if err != nil {
		return fmt.Errorf("--pages-address %s: %w", o.pagesAddress, err)
	}
	return mgr.Add(&buildpages.Server{
		Listener: listener, Builds: mgr.GetClient(), Logs: buildpages.NewLogStreamer(clientset), Secrets: mgr.GetAPIReader(),
	})
}

// drainOnSignal has the first SIGTERM or SIGINT end things well: nothing new is taken, what runs is reported, stop: is served. Another replica, as soon
// and as long as there is one, leads meanwhile; else the controllers run here, for builds have to end. A second signal, or the end of the drain timeout,
// ends at once; builds then go on in the cluster and their jobs are requeued or retried.
func (o *operatorOptions) drainOnSignal(ctx context.Context, cancel context.CancelFunc, lead *leadership) {
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	select {
	case <-signals:
	case <-ctx.Done():
		return
	}
	ctx, stop := context.WithTimeout(ctx, o.drainTimeout)
	defer stop()
	go func() {
		select {
		case <-signals:
			stop()
		case <-ctx.Done():
		}
	}()
	lead.drain()
	if err := lead.bridge.Drain(ctx); err != nil {
		lead.logger.Warn("Ending before the drain was over", "error", err)
	}
}

func (o *operatorOptions) newManager(config *rest.Config) (ctrl.Manager, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                 scheme,
		Cache:                  controllers.CacheOptions(o.namespaces...),
		Metrics:                o.metricsOptions(),
		HealthProbeBindAddress: o.healthAddress,
	})
	if err != nil {
		return nil, err
	}
	return mgr, mgr.AddHealthzCheck("ping", healthz.Ping)
}

// metricsOptions has metrics served in plain HTTP to everybody, or by HTTPS to those whom the API server knows and allows to get them.
func (o *operatorOptions) metricsOptions() metricsserver.Options {
	options := metricsserver.Options{BindAddress: o.metricsAddress}
	if o.metricsSecure {
		options.SecureServing, options.CertDir = true, o.metricsCertDir
		options.FilterProvider = filters.WithAuthenticationAndAuthorization
		// Without HTTP/2, which scrapes gain nothing by, nobody can open streams by the thousand on one connection before they are asked who they are.
		options.TLSOpts = []func(*tls.Config){func(config *tls.Config) { config.NextProtos = []string{"http/1.1"} }}
	}
	return options
}

func (o *operatorOptions) config() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("no cluster to work on: %w; give --kubeconfig", err)
	}
	controllers.LimitRequests(config)
	return config, noticeSilence()
}

// noticeSilence has client-go give a connection up on which the API server is silent, because its node has lost its power say, within some 8 seconds.
// By itself it takes 45, and all requests wait meanwhile: a replica that lives would be called dead by others (replicas.Duration), and its builds stopped.
// The environment is the only way to tell, and it goes before.
func noticeSilence() error {
	for _, variable := range []string{"HTTP2_READ_IDLE_TIMEOUT_SECONDS", "HTTP2_PING_TIMEOUT_SECONDS"} {
		if _, given := os.LookupEnv(variable); given {
			continue
		}
		if err := os.Setenv(variable, "4"); err != nil {
			return err
		}
	}
	return nil
}

// buildURL makes the address of a build's page.
func (o *operatorOptions) buildURL() (func(*v1alpha1.ZuulBuild) string, error) {
	base, err := url.Parse(o.pagesURL)
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		return nil, fmt.Errorf("an address such as https://builds.example.org was expected, not %q", o.pagesURL)
	}
	prefix := strings.TrimSuffix(base.String(), "/")
	return func(build *v1alpha1.ZuulBuild) string { return prefix + buildpages.BuildPath(build.Name) }, nil
}

func (o *operatorOptions) level() (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return level, fmt.Errorf("debug, info, warn or error was expected, not %q", o.logLevel)
	}
	return level, nil
}

// logHandler writes lines of JSON. What logr calls err, and with it every library, is called error, as everywhere else.
func logHandler(to io.Writer, level slog.Leveler) slog.Handler {
	return slog.NewJSONHandler(to, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, attribute slog.Attr) slog.Attr {
		if len(groups) == 0 && attribute.Key == "err" {
			attribute.Key = "error"
		}
		return attribute
	}})
}

// newLogger is for all there is to log, the libraries' lines among it. Its level may be changed at any time.
func newLogger(level slog.Level) (*slog.Logger, *slog.LevelVar) {
	verbosity := &slog.LevelVar{}
	verbosity.Set(level)
	handler := logHandler(os.Stderr, verbosity)
	logger := slog.New(handler)
	ctrl.SetLogger(logr.FromSlogHandler(handler))
	klog.SetSlogLogger(logger)
	return logger, verbosity
}
