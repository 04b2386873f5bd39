package gearmanbridge

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// A build is alone while it is unfinished and nobody waits for it: its Gearman job was lost with a connection. Whether the job comes back depends on
// the server (protocol section 5). geard has failed it at once, so it never does. gearmand has put it back into its queue, where it may stay for long
// if many are before it, or if all slots are taken by builds that are alone: as long as gearmand says that it knows the unique, the build goes on, and
// its result is told when the job is given out again. A server that says nothing is given the grace period.

// aloneBuilds is since when builds have been alone, or since when a server last said that it knows them. A restart begins anew, which only gives a
// unique longer to come back.
type aloneBuilds struct {
	mu    sync.Mutex
	since map[types.NamespacedName]time.Time
}

// set notes that a build is alone or no longer so, and tells since when it has been; zero if it is not.
func (l *aloneBuilds) set(key types.NamespacedName, alone bool) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !alone {
		delete(l.since, key)
		return time.Time{}
	}
	if l.since == nil {
		l.since = map[types.NamespacedName]time.Time{}
	}
	if _, known := l.since[key]; !known {
		l.since[key] = time.Now()
	}
	return l.since[key]
}

// knows tells whether a build is noted to be alone.
func (l *aloneBuilds) knows(key types.NamespacedName) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, known := l.since[key]
	return known
}

// prolong begins the grace period of a build anew.
func (l *aloneBuilds) prolong(key types.NamespacedName) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, alone := l.since[key]; alone {
		l.since[key] = time.Now()
	}
}

// prolongAll begins all grace periods anew.
func (l *aloneBuilds) prolongAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key := range l.since {
		l.since[key] = time.Now()
	}
}

// knownBehaviour is which program a Gearman server is, once that is known.
type knownBehaviour struct {
	value atomic.Pointer[gearman.Behaviour]
}

// forgets tells whether the server is known to fail the jobs of a lost connection at once.
func (k *knownBehaviour) forgets() bool { return k.is(gearman.Geard) }

// requeues tells whether the server is known to give the jobs of a lost connection out again.
func (k *knownBehaviour) requeues() bool { return k.is(gearman.Gearmand) }

func (k *knownBehaviour) is(program gearman.Behaviour) bool {
	behaviour := k.value.Load()
	return behaviour != nil && *behaviour == program
}

// graceOf a build that is alone: how long a server that says nothing of it may take to bring its unique back.
func (b *Bridge) graceOf(build *v1alpha1.ZuulBuild) time.Duration {
	s := b.sessionOf(build)
	if build.Spec.UUID == "" || s != nil && s.behaviour.forgets() {
		return 0
	}
	return b.GracePeriod
}

// unasked tells whether the server of a build should have been asked about it by now and was not: this process, or all the machine, has stood still. The
// grace period may be over then without the server having had its say.
func (b *Bridge) unasked(build *v1alpha1.ZuulBuild) bool {
	s := b.sessionOf(build)
	return s != nil && b.graceOf(build) > 0 && (s.settled.Load() == nil || b.stoodStill(s))
}

// stoodStill tells whether a server was not asked for much longer than it should have been.
func (b *Bridge) stoodStill(s *session) bool {
	last := s.settled.Load()
	return last != nil && time.Since(*last) > max(b.GracePeriod/2, 2*b.nextSettling())
}

// handsOver tells whether a build is to be the leader's, because this replica cannot reach the server that may know it, and another one may.
func (b *Bridge) handsOver(build *v1alpha1.ZuulBuild) bool {
	s := b.sessionOf(build)
	return s != nil && !s.reached.Load() && b.graceOf(build) > 0 && b.Replicas != nil && !b.leads.Load() && b.Replicas.Others()
}

// handOver has a build be of no replica, and so the leader's, which asks the server.
func (b *Bridge) handOver(ctx context.Context, build *v1alpha1.ZuulBuild) error {
	left := build.DeepCopy()
	delete(left.Labels, v1alpha1.LabelReplica)
	return client.IgnoreNotFound(b.Client.Patch(ctx, left, client.MergeFrom(build)))
}

// sessionOf the server a build came from; nil if it is served no more.
func (b *Bridge) sessionOf(build *v1alpha1.ZuulBuild) *session {
	for _, s := range b.sessions {
		if s.server.Name == build.Labels[v1alpha1.LabelGearmanServer] {
			return s
		}
	}
	return nil
}

// settleRegularly asks a server about the builds of it that are alone: whenever a connection to it was made, and from time to time.
func (b *Bridge) settleRegularly(ctx context.Context, s *session) {
	timer := time.NewTimer(b.nextSettling())
	defer timer.Stop()
	level := slog.LevelWarn // for the first of many equal reports
	for {
		connected := false
		select {
		case <-ctx.Done():
			return
		case <-s.reconnected:
			s.behaviour.value.Store(nil) // it may be another server
			connected = true
		case <-timer.C:
		}
		next := b.nextSettling()
		if b.stoodStill(s) {
			b.alone.prolongAll() // what is tried first after that may well be in vain
		}
		err := b.settle(ctx, s, connected)
		s.reached.Store(err == nil)
		s.settled.Store(new(time.Now()))
		if err == nil {
			level = slog.LevelWarn
		} else if ctx.Err() == nil {
			b.Logger.Log(ctx, level, "The Gearman server does not tell whether lost jobs come back; asking again", "gearmanServer", s.server.Name, "error", err)
			level, next = slog.LevelDebug, min(next, time.Second)
		}
		timer.Reset(next)
	}
}

// nextSettling is often enough that no grace period ends while the server answers.
func (b *Bridge) nextSettling() time.Duration {
	return max(min(b.nextSweep(), b.GracePeriod/3), 50*time.Millisecond)
}

// settle asks the server about the builds that are alone, if there are any or if it is not known which program it is.
func (b *Bridge) settle(ctx context.Context, s *session, identify bool) error {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	builds, err := b.listAlone(ctx, s)
	if err != nil {
		return err
	}
	unoffered, err := b.unoffered(ctx, s)
	if err != nil || len(builds)+len(unoffered) == 0 && s.kept.Load() == nil && !identify && s.behaviour.value.Load() != nil {
		return err
	}
	for i := range builds {
		if key := client.ObjectKeyFromObject(&builds[i]); !b.alone.knows(key) {
			b.notify(ctx, s.server.Name, key) // its replica is gone: the grace period begins
		}
	}
	admin, err := s.server.admin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }()
	behaviour, err := admin.Behaviour(ctx)
	if err != nil {
		return err
	}
	if s.behaviour.value.Swap(&behaviour) == nil { // what came to be alone meanwhile could not be told how long it may be
		if builds, err = b.listAlone(ctx, s); err != nil {
			return err
		}
	}
	for i := range builds {
		key := client.ObjectKeyFromObject(&builds[i])
		if behaviour == gearman.Geard {
			b.notify(ctx, s.server.Name, key) // its grace period is over
			continue
		}
		if !askable(&builds[i]) {
			continue
		}
		known, err := admin.KnowsUnique(ctx, builds[i].Spec.UUID)
		switch {
		case err != nil:
			return err
		case known:
			b.alone.prolong(key)
		case !b.assignments.has(key): // it did not come back and end while we asked
			b.Logger.With(buildlog.Of(&builds[i])...).Info("The Gearman server forgot the job of the build; stopping it", "gearmanServer", s.server.Name)
			err := b.abort(ctx, &builds[i], v1alpha1.AbortAbandoned, client.MergeFromWithOptimisticLock{})
			if apierrors.IsConflict(err) {
				continue // an old view: it may be stopped already
			} else if err != nil {
				return err
			}
			b.metrics.orphans.WithLabelValues(string(orphanUnknown)).Inc()
		}
	}
	if behaviour != gearman.Gearmand {
		unoffered = nil // no job comes back
	}
	return b.keep(ctx, s, admin, unoffered)
}

// listAlone lists the builds of a server that are alone and that this replica is to see to.
func (b *Bridge) listAlone(ctx context.Context, s *session) ([]v1alpha1.ZuulBuild, error) {
	builds := v1alpha1.ZuulBuildList{}
	err := b.Client.List(ctx, &builds, client.MatchingFields{indexComplete: "false"},
		client.MatchingLabels{v1alpha1.LabelGearmanServer: s.server.Name}, client.UnsafeDisableDeepCopy)
	var alone []v1alpha1.ZuulBuild
	for i := range builds.Items {
		if build := &builds.Items[i]; !build.Spec.Abort && build.Spec.UUID != "" && !b.assignments.has(client.ObjectKeyFromObject(build)) &&
			b.responsible(build) {
			alone = append(alone, *build)
		}
	}
	return alone, err
}
