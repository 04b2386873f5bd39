package gearmanbridge

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// metrics are those of docs/metrics.md. Events are counted as they come; what is, is computed at each scrape from the objects and the connections, and
// only while this replica leads, so that a sum over all replicas is right.
type metrics struct {
	grabs, requests, orphans, stops, descriptions, reports *prometheus.CounterVec

	stopDuration, reportDuration prometheus.Histogram

	// leads tells whether this replica does, read what is, and failed is told why it cannot.
	leads  func() bool
	read   func() (snapshot, error)
	failed func(error)

	mu     sync.Mutex
	queues map[string][]queue // of each server that answered when it was asked last
}

// Values of labels.
const (
	grabAssigned, grabNoJob                                         = "assigned", "no_job"
	requestCreated, requestAdopted, requestReplayed, requestRefused = "created", "adopted", "replayed", "refused"
	connectionBuilds, connectionManagement                          = "builds", "management"
	resultNone, resultOther                                         = "none", "other"
)

// knownResults are the results that have a series of their own.
var knownResults = []string{"SUCCESS", "FAILURE", "ABORTED", "TIMED_OUT", resultInvalidRequest, "RETRY_LIMIT", resultNone}

// maxQueuedFunctions bounds the series by function of one server. The sums by class are of all functions.
const maxQueuedFunctions = 100

// The descriptions of what is computed at each scrape.
var (
	connectionsDesc = prometheus.NewDesc("zuulbuild_gearman_connections",
		"Connections to the Gearman server that are up, by kind: builds (one for each set of limits) or management (stop: and set_description:). "+
			"If fewer than expected for minutes: the server, the network or its TLS; the log says why.",
		[]string{"server", "kind"}, nil)
	connectionsExpectedDesc = prometheus.NewDesc("zuulbuild_gearman_connections_expected",
		"Connections to the Gearman server that there should be, by kind: builds or management.",
		[]string{"server", "kind"}, nil)
	functionsDesc = prometheus.NewDesc("zuulbuild_gearman_functions_registered",
		"Functions build:JOB and build:JOB:CLASS registered on connections to the Gearman server that are up. "+
			"If fewer than expected: Zuul answers NOT_REGISTERED for the rest.",
		[]string{"server"}, nil)
	functionsExpectedDesc = prometheus.NewDesc("zuulbuild_gearman_functions_expected",
		"Functions that there should be at the Gearman server. If fewer than there are jobs: look at the condition Registered of the ZuulJobs.",
		[]string{"server"}, nil)
	queuedDesc = prometheus.NewDesc("zuulbuild_gearman_queued_jobs",
		"Gearman jobs of our functions that wait in the server for a worker, by node class (empty for build:JOB). Asked every 15 to 25 seconds; "+
			"absent while the server does not answer.",
		[]string{"server", "class"}, nil)
	startableDesc = prometheus.NewDesc("zuulbuild_gearman_startable_jobs",
		"Gearman jobs that wait in the server though there is room for them: their function is offered, and no limit of all builds, of their node class or of "+
			"their job is reached. Of jobs that share what room is left, each counts. If they stay and none is taken: the log says why.",
		[]string{"server"}, nil)
	functionQueuedDesc = prometheus.NewDesc("zuulbuild_gearman_function_queued_jobs",
		"The same by function, of the 100 longest queues of the server that are not empty.",
		[]string{"server", "function"}, nil)
	inFlightDesc = prometheus.NewDesc("zuulbuild_builds_in_flight",
		"Builds that are not complete, and requests that are about to become one, by node class (empty for none).",
		[]string{"class"}, nil)
	slotsLimitDesc = prometheus.NewDesc("zuulbuild_slots_limit",
		"How many builds may be in flight before no more are taken: --max-builds.", nil, nil)
	slotsUsedDesc = prometheus.NewDesc("zuulbuild_slots_used",
		"How many builds count for that limit: those that Zuul asked for, and those made by hand that have a Pod. If it stays at the limit while jobs are queued: raise --max-builds, if the cluster has room.", nil, nil)
	slotsWithoutBuildDesc = prometheus.NewDesc("zuulbuild_slots_without_build",
		"How many of the used slots are held by no unfinished ZuulBuild: by Pods that outlive the ZuulBuild they were made for, because somebody deleted it. "+
			"If for long: their node does not answer.", nil, nil)
	classSlotsLimitDesc = prometheus.NewDesc("zuulbuild_class_slots_limit",
		"How many builds may be in flight on a node class, for each that has a limit: maxBuilds of its ZuulNodeClass.", []string{"class"}, nil)
	classSlotsUsedDesc = prometheus.NewDesc("zuulbuild_class_slots_used",
		"How many builds count for the limit of a node class, for each that has one.", []string{"class"}, nil)
)

var scrapedDescs = []*prometheus.Desc{
	connectionsDesc, connectionsExpectedDesc, functionsDesc, functionsExpectedDesc, queuedDesc, startableDesc, functionQueuedDesc, inFlightDesc,
	slotsLimitDesc, slotsUsedDesc, slotsWithoutBuildDesc, classSlotsLimitDesc, classSlotsUsedDesc,
}

// latencyBuckets are from 1 ms to 10 s.
var latencyBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// newMetrics has every series of known labels begin at 0, so that the first event is an increase.
func newMetrics(servers []string, leads func() bool, read func() (snapshot, error), failed func(error)) *metrics {
	m := &metrics{
		leads: leads, read: read, failed: failed, queues: map[string][]queue{},
		grabs: counter("zuulbuild_gearman_grabs_total",
			"Grabs the Gearman server answered, by outcome: assigned (it brought a job) or no_job.", "server", "outcome"),
		requests: counter("zuulbuild_requests_total",
			"Requests for builds that were dealt with, by outcome: created (a new ZuulBuild), adopted (its unfinished ZuulBuild was there already), "+
				"replayed (its complete one was, and tells its result again) or refused (INVALID_REQUEST without a ZuulBuild; the log says why).", "outcome"),
		orphans: counter("zuulbuild_orphans_total",
			"Builds found to have nobody who waits for them, by cause: connection_lost (the Gearman job did not come back within --grace-period), "+
				"no_unique (the same of a request without a unique, which cannot come back), cancelled (gearmand: the job was cancelled or its client is gone) "+
				"or unknown_to_server (geard: its client is gone; any server: it forgot the job).", "cause"),
		stops: counter("zuulbuild_stop_requests_total",
			"stop: requests, by outcome: stopped, already_ended (or asked to stop before), unknown (no such build of this server's), malformed (the argument "+
				"cannot be read) or error (the API server or the cache failed; a build that is known is tried again).", "outcome"),
		descriptions: counter("zuulbuild_set_description_requests_total",
			"set_description: requests, by outcome: accepted, unknown (no such build of this server's), malformed (the argument cannot be read) or error "+
				"(the cache failed; the description is lost).", "outcome"),
		reports: counter("zuulbuild_reports_total",
			"Builds whose end was sent to whoever waited, by result: SUCCESS, FAILURE, ABORTED, TIMED_OUT, INVALID_REQUEST, RETRY_LIMIT, none (lost by the "+
				"infrastructure: Zuul runs the job again; look at the reasons of the builds) or other. Sent again after a reconnect it counts again.", "result"),
		stopDuration: histogram("zuulbuild_stop_answer_duration_seconds",
			"Time from the assignment of a stop: request for a build there is to its answer. The build ends later."),
		reportDuration: histogram("zuulbuild_report_duration_seconds",
			"Time from when this replica's cache learned that a build is complete until its finishing packet was written. Without the way from the API server, "+
				"because status.completionTime has whole seconds only, and without builds that were complete when they were asked for."),
	}
	for _, server := range servers {
		start(m.grabs, server, grabAssigned)
		start(m.grabs, server, grabNoJob)
	}
	for _, outcome := range []string{requestCreated, requestAdopted, requestReplayed, requestRefused} {
		start(m.requests, outcome)
	}
	for _, cause := range []orphanCause{orphanConnectionLost, orphanNoUnique, orphanCancelled, orphanUnknown} {
		start(m.orphans, string(cause))
	}
	for _, outcome := range []commandOutcome{commandStopped, commandAlreadyEnded, commandUnknown, commandMalformed, commandError} {
		start(m.stops, string(outcome))
	}
	for _, outcome := range []commandOutcome{commandAccepted, commandUnknown, commandMalformed, commandError} {
		start(m.descriptions, string(outcome))
	}
	for _, result := range knownResults {
		start(m.reports, result)
	}
	return m
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func histogram(name, help string) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: latencyBuckets})
}

func start(counter *prometheus.CounterVec, labels ...string) {
	counter.WithLabelValues(labels...).Add(0)
}

func (m *metrics) counted() []prometheus.Collector {
	return []prometheus.Collector{m.grabs, m.requests, m.orphans, m.stops, m.descriptions, m.reports, m.stopDuration, m.reportDuration}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, collector := range m.counted() {
		collector.Describe(descs)
	}
	for _, desc := range scrapedDescs {
		descs <- desc
	}
}

// Collect implements prometheus.Collector. It asks nobody but the cache.
func (m *metrics) Collect(values chan<- prometheus.Metric) {
	for _, collector := range m.counted() {
		collector.Collect(values)
	}
	if !m.leads() {
		return
	}
	now, err := m.read()
	if err != nil {
		m.failed(err)
		return
	}
	m.collect(values, now)
}

func (m *metrics) collect(values chan<- prometheus.Metric, now snapshot) {
	gauge := func(desc *prometheus.Desc, value int, labels ...string) {
		values <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	for _, server := range now.servers {
		gauge(connectionsDesc, server.builds.up, server.name, connectionBuilds)
		gauge(connectionsDesc, server.management.up, server.name, connectionManagement)
		gauge(connectionsExpectedDesc, server.builds.expected, server.name, connectionBuilds)
		gauge(connectionsExpectedDesc, server.management.expected, server.name, connectionManagement)
		gauge(functionsDesc, server.functions, server.name)
		gauge(functionsExpectedDesc, len(server.planned), server.name)
		queues := m.queuesOf(server.name)
		if queues != nil {
			gauge(startableDesc, now.startable(queues, server.planned), server.name)
		}
		for class, length := range byClass(queues) {
			gauge(queuedDesc, length, server.name, class)
		}
		for _, queue := range longest(queues) {
			gauge(functionQueuedDesc, queue.length, server.name, queue.function)
		}
	}
	for class, count := range now.inFlight {
		gauge(inFlightDesc, count, class)
	}
	gauge(slotsLimitDesc, now.limits.All)
	gauge(slotsUsedDesc, now.used.Of(capacity.Scope{}).All)
	gauge(slotsWithoutBuildDesc, now.withoutBuild)
	for class, limit := range now.limits.Classes {
		gauge(classSlotsLimitDesc, limit, class)
		gauge(classSlotsUsedDesc, now.used.Of(capacity.Scope{Class: class}).Class, class)
	}
}

// snapshot is what is, at one moment.
type snapshot struct {
	servers  []serverSnapshot
	inFlight map[string]int // by node class, "" for none
	used     *capacity.Usage
	limits   capacity.Limits

	withoutBuild int // slots that no unfinished build has
}

type serverSnapshot struct {
	name               string
	builds, management connections
	functions          int                       // registered
	planned            map[string]capacity.Scope // of each function that should be
}

// startable counts the jobs that wait though there is room for a build of their function.
func (s *snapshot) startable(queues []queue, planned map[string]capacity.Scope) int {
	jobs := 0
	for _, queue := range queues {
		if scope, offered := planned[queue.function]; offered && queue.length > 0 && s.limits.Room(s.used, scope) {
			jobs += queue.length
		}
	}
	return jobs
}

type connections struct{ up, expected int }

// setupMetrics makes the metrics, and registers them if there is somebody to read them.
func (b *Bridge) setupMetrics() error {
	names := make([]string, 0, len(b.Servers))
	for _, server := range b.Servers {
		names = append(names, server.Name)
	}
	b.metrics = newMetrics(names, b.leads.Load, b.snapshot, func(err error) { b.Logger.Error("Metrics are left out of a scrape", "error", err) })
	if b.Metrics == nil {
		return nil
	}
	return b.Metrics.Register(b.metrics)
}

func (b *Bridge) snapshot() (snapshot, error) {
	now := snapshot{}
	for _, s := range b.sessions {
		builds, functions, planned := s.builds.tally()
		management := connections{expected: 1}
		if s.connected.Load() {
			management.up = 1
		}
		now.servers = append(now.servers, serverSnapshot{s.server.Name, builds, management, functions, planned})
	}
	b.slots.mu.Lock() // no assignment is added meanwhile, see usage
	defer b.slots.mu.Unlock()
	now.limits = b.slots.limits // whose maps are never changed
	now.used = b.usage(&now.limits)
	unfinished := v1alpha1.ZuulBuildList{}
	err := b.Client.List(context.Background(), &unfinished, client.MatchingFields{indexComplete: "false"}, client.UnsafeDisableDeepCopy)
	now.inFlight = b.inFlight(unfinished.Items)
	now.withoutBuild = withoutBuild(b.Builds.Claimants(), unfinished.Items)
	return now, err
}

// inFlight counts the unfinished builds and the assignments on their way by node class, limited or not. b.slots.mu is held.
func (b *Bridge) inFlight(unfinished []v1alpha1.ZuulBuild) map[string]int {
	byClass := map[string]int{}
	b.assignments.each(func(of target) { byClass[of.class]++ })
	for i := range unfinished {
		if build := &unfinished[i]; !b.assignments.has(client.ObjectKeyFromObject(build)) {
			byClass[build.Spec.Node]++
		}
	}
	return byClass
}

// withoutBuild counts those who have a slot and are not among the unfinished builds.
func withoutBuild(claimants []types.NamespacedName, unfinished []v1alpha1.ZuulBuild) int {
	builds := make(map[types.NamespacedName]bool, len(unfinished))
	for i := range unfinished {
		builds[client.ObjectKeyFromObject(&unfinished[i])] = true
	}
	without := 0
	for _, claimant := range claimants {
		if !builds[claimant] {
			without++
		}
	}
	return without
}

// tally counts the connections, and the functions that are registered on those that are up, and tells which should be; not to be changed. A retired pool
// may still have some of them, which count once.
func (p *pools) tally() (builds connections, functions int, planned map[string]capacity.Scope) {
	p.mu.Lock()
	defer p.mu.Unlock()
	builds.expected = len(p.running)
	for running := range p.running {
		if running.connected.Load() {
			builds.up++
		}
	}
	for _, scope := range p.planned {
		if active := p.active[scope]; active != nil && active.connected.Load() {
			functions++
		}
	}
	return builds, functions, p.planned
}

// noteConnection has up tell whether a worker has a connection.
func noteConnection(worker *gearman.Worker, up *atomic.Bool) {
	worker.Connected = func() { up.Store(true) }
	worker.Lost = func(error) { up.Store(false) }
}

// command counts a command and what became of it.
func (m *metrics) command(job *gearman.Job, outcome commandOutcome, err error) {
	if err != nil {
		outcome = commandError
	}
	counter := m.descriptions
	if strings.HasPrefix(job.Function, stopFunction) {
		counter = m.stops
	}
	counter.WithLabelValues(string(outcome)).Inc()
}

// answered notes how long the answer to a command took.
func (m *metrics) answered(job *gearman.Job) {
	if strings.HasPrefix(job.Function, stopFunction) {
		m.stopDuration.Observe(time.Since(job.Assigned).Seconds())
	}
}

// abandoned counts a build that was stopped because it had no listener for too long, unless err says that it was not.
func (m *metrics) abandoned(build *v1alpha1.ZuulBuild, err error) {
	cause := orphanConnectionLost
	if build.Spec.UUID == "" {
		cause = orphanNoUnique
	}
	if err == nil {
		m.orphans.WithLabelValues(string(cause)).Inc()
	}
}

// reported counts the end of a build that was sent to a listener.
func (m *metrics) reported(a *assignment, result string) {
	m.reports.WithLabelValues(resultLabel(result)).Inc()
	if completed := a.completedAt(); !completed.IsZero() {
		m.reportDuration.Observe(time.Since(completed).Seconds())
	}
}

// resultLabel bounds the values of the label.
func resultLabel(result string) string {
	result = cmp.Or(result, resultNone)
	if slices.Contains(knownResults, result) {
		return result
	}
	return resultOther
}

// found is the outcome of a request whose ZuulBuild was there before.
func found(build *v1alpha1.ZuulBuild) string {
	if build.Complete() {
		return requestReplayed
	}
	return requestAdopted
}

// noteCompletions tells the listeners of a build when the cache learned of its end. It lets every event pass.
func (b *Bridge) noteCompletions() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(update event.UpdateEvent) bool {
		before, after := update.ObjectOld.(*v1alpha1.ZuulBuild), update.ObjectNew.(*v1alpha1.ZuulBuild)
		if !before.Complete() && after.Complete() {
			for _, a := range b.assignments.of(client.ObjectKeyFromObject(after)) {
				a.completes()
			}
		}
		return true
	}}
}

// queue is the jobs of one function that wait in a server.
type queue struct {
	function string
	class    string // "" for build:JOB
	length   int
}

// measureQueue asks a server regularly for the length of our queues, beside the sweep: neither waits for the other.
func (b *Bridge) measureQueue(ctx context.Context, server Server) {
	if b.Metrics == nil {
		return
	}
	timer := time.NewTimer(b.nextSweep())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			queues, err := b.askQueues(ctx, server)
			if err != nil {
				b.Logger.Debug("The Gearman server does not tell the length of its queues", "gearmanServer", server.Name, "error", err)
			}
			b.metrics.setQueues(server.Name, queues)
			timer.Reset(b.nextSweep())
		}
	}
}

// askQueues asks for the queues of the functions that are or were ours; others are none of our business.
func (b *Bridge) askQueues(ctx context.Context, server Server) ([]queue, error) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	admin, err := server.admin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = admin.Close() }()
	functions, err := admin.Status(ctx)
	if err != nil {
		return nil, err
	}
	var queues []queue
	for _, function := range functions {
		if target, ours := b.functions.lookup(function.Name); ours {
			queues = append(queues, queue{function.Name, target.class, function.Queued})
		}
	}
	return queues, nil
}

// setQueues replaces what is known of a server; nil is for nothing.
func (m *metrics) setQueues(server string, queues []queue) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queues[server] = queues
}

// queuesOf a server, not to be changed.
func (m *metrics) queuesOf(server string) []queue {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.queues[server]
}

// byClass sums the queues; a class whose queues are all empty is there with 0.
func byClass(queues []queue) map[string]int {
	lengths := map[string]int{}
	for _, queue := range queues {
		lengths[queue.class] += queue.length
	}
	return lengths
}

// longest are the queues that have a series of their own.
func longest(queues []queue) []queue {
	queues = slices.DeleteFunc(slices.Clone(queues), func(queue queue) bool { return queue.length == 0 })
	slices.SortFunc(queues, func(a, b queue) int {
		return cmp.Or(cmp.Compare(b.length, a.length), cmp.Compare(a.function, b.function))
	})
	return queues[:min(len(queues), maxQueuedFunctions)]
}
