// Package gearmanbridge is the Gearman side of the operator: requests become ZuulBuilds (intake.go), what becomes of those goes back as WORK_*
// packets (report.go), stop: sets spec.abort (stop.go), and so do sweeps for builds that nobody waits for (sweep.go); set_description: sets
// status.description (description.go). It knows the controllers only by the objects they share.
package gearmanbridge

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/tracing"
)

// Server is a Gearman server to take builds from.
type Server struct {
	// Name marks the builds that came from it; a label value. Builds that run when it changes are strangers to the server that asked for them.
	Name string
	// Address is host:port, or host for port 4730. Two servers must not be the same one: a build requeued by it could come back under the other name.
	Address string
	// TLS is used unless nil; it is called for each connection.
	TLS func() (*tls.Config, error)
}

// Numbers gives out build numbers; see package buildnumber.
type Numbers interface {
	Next(ctx context.Context, job types.NamespacedName, name string) (int64, error)
}

// Builds counts the builds there are; see capacity.Builds.
type Builds interface {
	Claimed(*capacity.Limits) *capacity.Usage
	Claimants() []types.NamespacedName
	Knows(types.NamespacedName) bool
	OnFreed(func()) (stop func())
	WaitForSync(context.Context) bool
}

// Bridge is connected to Gearman servers while it is started, and takes builds from them while this replica leads (Lead, Follow).
type Bridge struct {
	// Client reads from a cache.
	Client client.Client
	// Live reads past the cache.
	Live    client.Reader
	Numbers Numbers
	Builds  Builds
	Servers []Server
	// Manager is the MANAGER of stop:MANAGER: the name of this cluster to Zuul, the same in every replica.
	Manager string
	// MaxBuilds is how many builds may have a slot before no more are grabbed. Node classes and jobs may have limits of their own.
	MaxBuilds *capacity.Ceiling
	// GracePeriod is how long a build whose Gearman job is gone may wait for its unique to come back.
	GracePeriod time.Duration
	// SweepInterval is the longest time between two questions to a server whether anybody waits for its jobs still, 0 for DefaultSweepInterval.
	SweepInterval time.Duration
	// PingInterval and PingTimeout are those of gearman.Worker, 0 for its defaults.
	PingInterval, PingTimeout time.Duration
	// BuildURL is the address of the page of a build: percent-encoded ASCII.
	BuildURL func(*v1alpha1.ZuulBuild) string
	Worker   WorkerInfo
	Logger   *slog.Logger
	// Replicas are the other replicas, nil where there are none; see lead.go. Identity is this one's, a label value, and empty only without Replicas.
	Replicas Replicas
	Identity string
	// Metrics gets those of docs/metrics.md; nil for none.
	Metrics prometheus.Registerer
	// Tracer makes a trace of each build whose end is reported; nil makes none.
	Tracer *tracing.Tracer

	metrics     *metrics
	assignments assignments
	alone       aloneBuilds
	functions   functionTable
	slots       slots
	sessions    []*session
	describer   describer
	refusals    rate.Sometimes            // how often a command that is refused is told of
	leads, led  atomic.Bool               // whether this replica leads, and whether it ever did
	lastCut     atomic.Pointer[time.Time] // when this replica was last seen to be cut off from the API server; nil for never
	replan      chan event.GenericEvent   // holds one while the functions and limits are to be looked at again, though no object has changed
	reporters   map[string]*reporter      // by the server whose builds they report

	// 0: the constants, for which tests cannot wait, or too long ones for a busy machine
	forbiddenFor, countedWithin, behindFor time.Duration
}

// session is what runs for one Gearman server: stop: on a connection of its own, so that it never waits behind builds (protocol section 6).
type session struct {
	server     Server
	builds     pools
	management *gearman.Worker
	// suspicion holds a token while the jobs of the server are to be asked for at once.
	suspicion chan struct{}
	// reconnected holds a token when the management connection was made, and behaviour is what the server was found to be.
	reconnected chan struct{}
	behaviour   knownBehaviour
	// settled is when the builds that are alone were looked at last, and the server was asked about them, be it in vain; nil for never.
	settled atomic.Pointer[time.Time]
	// reached is whether it could be.
	reached atomic.Bool
	// kept are the functions that are offered for the sake of lost jobs alone; nil for none.
	kept atomic.Pointer[map[string]target]
	// connected is whether management is, and ready whether all was registered once.
	connected, ready atomic.Bool
}

// SetupWithManager registers the bridge with the manager: the sessions and the controllers that keep the functions right, report builds and
// write descriptions.
func (b *Bridge) SetupWithManager(ctx context.Context, mgr ctrl.Manager) error {
	b.describer.bridge, b.describer.changed = b, make(chan event.GenericEvent)
	b.replan = make(chan event.GenericEvent, 1)
	b.refusals.Interval = time.Minute
	b.slots.count = b.usage
	b.slots.open(b.leads.Load())
	b.Builds.OnFreed(b.slots.wake)
	b.MaxBuilds.OnChange(b.lookAgain)
	if err := b.setupMetrics(); err != nil {
		return err
	}
	b.reporters = map[string]*reporter{"": b.newReporter("")}
	for _, server := range b.Servers {
		b.sessions = append(b.sessions, b.newSession(server))
		b.reporters[server.Name] = b.newReporter(server.Name)
	}
	if err := setupIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	if err := (&registrar{bridge: b}).setup(mgr); err != nil {
		return err
	}
	for _, reporter := range b.reporters {
		if err := reporter.setup(mgr); err != nil {
			return err
		}
	}
	if err := b.describer.setup(mgr); err != nil {
		return err
	}
	return mgr.Add(b)
}

func (b *Bridge) newSession(server Server) *session {
	s := &session{server: server, suspicion: make(chan struct{}, 1), reconnected: make(chan struct{}, 1)}
	logger := b.Logger.With("gearmanServer", server.Name)
	s.builds.create = func(scope capacity.Scope) *pool {
		p := &pool{scope: scope, retired: make(chan struct{})}
		p.worker = &gearman.Worker{
			Address: server.Address, TLS: server.TLS, ClientID: poolID(b.Manager, scope), Logger: logger.With("pool", scope.String()),
			ServerError:  func(code, _ string) { s.suspect(code) },
			NoJob:        func() { b.metrics.grabs.WithLabelValues(server.Name, grabNoJob).Inc() },
			PingInterval: b.PingInterval, PingTimeout: b.PingTimeout,
			Reserve: func() bool { return b.slots.reserve(p) },
			Free:    func() bool { return b.slots.free(p) },
			Release: func() { b.slots.release(p) },
		}
		noteConnection(p.worker, &p.connected)
		return p
	}
	s.management = &gearman.Worker{
		Address: server.Address, TLS: server.TLS, ClientID: b.Manager + "_manager", Logger: logger,
		PingInterval: b.PingInterval, PingTimeout: b.PingTimeout,
		Free:   b.answersCommands,
		Window: 2, // a person who cancels a change has dozens of builds stopped at once
	}
	noteConnection(s.management, &s.connected)
	s.management.Connected = func() {
		s.connected.Store(true)
		token(s.reconnected)
	}
	return s
}

// poolID is what a pool is called in gearmand's list of workers.
func poolID(manager string, s capacity.Scope) string {
	id := manager + "_builds"
	if s != (capacity.Scope{}) {
		id += ":" + s.String()
	}
	return id[:min(len(id), gearman.MaxClientID)]
}

// setFunctions offers the functions to every server, under the limits.
func (b *Bridge) setFunctions(functions map[string]target, l capacity.Limits) error {
	b.slots.setLimits(l)
	b.functions.offer(functions)
	for _, s := range b.sessions {
		all := s.withKept(functions)
		b.functions.merge(all)
		if err := s.builds.set(planPools(all, &l)); err != nil {
			return err
		}
	}
	return nil
}

// NeedLeaderElection is false: every replica is connected, though only the one that leads takes builds.
func (b *Bridge) NeedLeaderElection() bool { return false }

// Start is connected, and takes builds while it leads, until ctx is done.
func (b *Bridge) Start(ctx context.Context) error {
	if !b.Builds.WaitForSync(ctx) {
		return nil
	}
	var running sync.WaitGroup
	defer running.Wait()
	asked := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if b.Replicas != nil {
		running.Go(func() { b.watchCutOff(ctx) })
	}
	for _, s := range b.sessions {
		s.management.Assigned = func(job *gearman.Job) { b.command(ctx, &running, s, job) }
		if err := s.management.SetFunctions(b.commandFunctions()); err != nil {
			return fmt.Errorf("manager name %q: %w", b.Manager, err)
		}
		running.Go(func() { b.sweepRegularly(ctx, s) })
		running.Go(func() { b.settleRegularly(ctx, s) })
		running.Go(func() { b.measureQueue(ctx, s.server) })
		running.Go(func() {
			if err := s.management.Run(ctx); err != nil {
				cancel(err)
			}
		})
		s.builds.start(func(p *pool) {
			p.worker.Assigned = func(job *gearman.Job) { b.assigned(ctx, &running, s, p, job) }
			running.Go(func() {
				if err := s.builds.work(ctx, p); err != nil {
					cancel(err)
				}
			})
		})
		defer s.builds.stop()
	}
	<-ctx.Done()
	if asked.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// Field indexes over ZuulBuilds.
const (
	indexComplete = "complete"
	indexUUID     = "spec.uuid"
	indexNumber   = "spec.number" // of a job, as numberKey tells it
)

// numberKey is how Zuul names a build from 2.0.0 on: by the Gearman name of its job and its number. A job may have thousands of builds, and many are
// stopped at once.
func numberKey(job string, number int64) string { return fmt.Sprintf("%s/%d", job, number) }

func setupIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	err := indexer.IndexField(ctx, &v1alpha1.ZuulBuild{}, indexComplete, func(object client.Object) []string {
		return []string{fmt.Sprint(object.(*v1alpha1.ZuulBuild).Complete())}
	})
	if err != nil {
		return err
	}
	err = indexer.IndexField(ctx, &v1alpha1.ZuulBuild{}, indexUUID, func(object client.Object) []string {
		return []string{object.(*v1alpha1.ZuulBuild).Spec.UUID}
	})
	if err != nil {
		return err
	}
	return indexer.IndexField(ctx, &v1alpha1.ZuulBuild{}, indexNumber, func(object client.Object) []string {
		spec := &object.(*v1alpha1.ZuulBuild).Spec
		return []string{numberKey(spec.Job, spec.Number)}
	})
}

// functionTable is what the registered functions mean. A function that is registered no more keeps its meaning: a job of it may be on its way.
type functionTable struct {
	mu      sync.RWMutex
	targets map[string]target
	offered map[string]target // those that the jobs have now; never changed
}

// offer notes the functions that the jobs have.
func (t *functionTable) offer(functions map[string]target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.offered = functions
}

// offers tells whether a job has the function of a target, be it another one than then, or may have it, because the jobs were not looked at yet.
func (t *functionTable) offers(wanted target) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	_, offered := t.offered[wanted.function()]
	return offered || t.offered == nil
}

func (t *functionTable) lookup(function string) (target, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	found, ok := t.targets[function]
	return found, ok
}

func (t *functionTable) merge(functions map[string]target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.targets == nil {
		t.targets = map[string]target{}
	}
	for name, target := range functions {
		t.targets[name] = target
	}
}
