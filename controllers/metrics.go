package controllers

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of docs/metrics.md. nil counts nothing.
type metrics struct {
	deletedBuilds, orphans *prometheus.CounterVec
}

// newMetrics has every series of known labels begin at 0, so that the first event is an increase.
func newMetrics() *metrics {
	m := &metrics{
		deletedBuilds: counter("zuulbuild_retention_deleted_builds_total",
			"Finished builds deleted because they are no longer kept, by cause: time, or count (as many of the job ended later).", "cause"),
		orphans: counter("zuulbuild_orphan_pods_deleted_total",
			"Pods deleted because they have no build, by cause: build_deleted, or build_replaced (the build of that name is another one).", "cause"),
	}
	for _, cause := range []string{expiredByTime, expiredByCount} {
		m.deletedBuilds.WithLabelValues(cause)
	}
	for _, cause := range []string{orphanDeleted, orphanReplaced} {
		m.orphans.WithLabelValues(cause)
	}
	return m
}

// setupMetrics makes the metrics, and registers them if there is somebody to read them.
func (r *ZuulBuildReconciler) setupMetrics() error {
	r.metrics = newMetrics()
	if r.Metrics == nil {
		return nil
	}
	return r.Metrics.Register(r.metrics)
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.deletedBuilds, m.orphans}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, collector := range m.collectors() {
		collector.Describe(descs)
	}
}

// Collect implements prometheus.Collector. It asks nobody but the cache.
func (m *metrics) Collect(values chan<- prometheus.Metric) {
	for _, collector := range m.collectors() {
		collector.Collect(values)
	}
}

// buildDeleted counts a build that is no longer kept.
func (m *metrics) buildDeleted(cause string) {
	if m != nil {
		m.deletedBuilds.WithLabelValues(cause).Inc()
	}
}

// orphanDeleted counts a Pod that had no build.
func (m *metrics) orphanDeleted(cause string) {
	if m != nil {
		m.orphans.WithLabelValues(cause).Inc()
	}
}
