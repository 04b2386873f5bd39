package gearmanbridge

import (
	"cmp"
	"context"
	"slices"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog"
)

// Every replica is connected to the Gearman servers, offers all functions and reports the builds it took. What only the leader does is to take some,
// to answer for builds whose replica is gone, and to write into the ZuulJobs what is registered. A function therefore always has a worker, and who loses
// the lead goes on with what it has.

// Replicas are the other replicas of the operator.
type Replicas interface {
	// Alive tells whether a replica lives, by its identity.
	Alive(identity string) bool
	// Others tells whether any other replica lives.
	Others() bool
	// Unseen is for how long others may have done what this one cannot know, because the API server did not answer it.
	Unseen() time.Duration
}

const (
	// commandsUnseen is how long the API server may be silent before a replica that does not lead leaves commands to others.
	commandsUnseen = 4 * time.Second
	// jobsUnseen is how long it may be silent before such a replica gives gearmand the jobs back that it has. Most outages of an API server are over by
	// then, and the others have called this replica dead.
	jobsUnseen = 2 * time.Minute
	// behindFor is how long after that its cache may still lack what others did: client-go's reflectors wait for up to a minute before they ask again an
	// API server that was away for long.
	behindFor = time.Minute
	// cutOffCheck is how often a replica looks whether it is cut off.
	cutOffCheck = time.Second
)

// Lead has this replica take builds. It may be called before Start, and again after Follow.
func (b *Bridge) Lead() {
	b.leads.Store(true)
	b.led.Store(true)
	b.slots.open(true)
	b.wakeManagement()
	b.lookAgain()
}

// lookAgain has the functions and the limits made anew.
func (b *Bridge) lookAgain() {
	select {
	case b.replan <- event.GenericEvent{Object: &v1alpha1.ZuulJob{}}:
	default: // somebody will look already
	}
}

// Follow has this replica take no more builds until it leads again. Those it has are reported to their end, and stop: is served as before.
func (b *Bridge) Follow() {
	b.leads.Store(false)
	b.slots.open(false)
}

// cutOff tells whether the API server has not answered for longer than the limit, while another replica may lead. Who leads is not cut off: it would
// have lost the lease.
func (b *Bridge) cutOff(limit time.Duration) bool {
	return b.Replicas != nil && !b.leads.Load() && b.Replicas.Unseen() > limit
}

// answersCommands tells whether this replica takes stop: and set_description:. Until it leads for the first time another one answers, which has fresher
// builds in its cache; so it is while it is cut off, and a while after: it would call the builds unknown that were taken since, and they would not be stopped.
func (b *Bridge) answersCommands() bool {
	return b.led.Load() && !b.cutOff(commandsUnseen) && !b.behind()
}

// behind tells whether this replica was cut off just now. Who leads is not, or only by what it did itself.
func (b *Bridge) behind() bool {
	last := b.lastCut.Load()
	return last != nil && !b.leads.Load() && time.Since(*last) < cmp.Or(b.behindFor, behindFor)
}

// watchCutOff gives jobs back while this replica is cut off, and has commands taken again when it is no more.
func (b *Bridge) watchCutOff(ctx context.Context) {
	ticker := time.NewTicker(cutOffCheck)
	defer ticker.Stop()
	wasCut := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		silent := b.led.Load() && b.cutOff(commandsUnseen)
		if silent {
			b.lastCut.Store(new(time.Now()))
		}
		cut := silent || b.behind()
		if cut && !wasCut {
			b.Logger.Warn("The API server does not answer, and another replica may lead: commands are left to others")
		}
		if wasCut && !cut {
			b.Logger.Info("The API server answers again, or this replica leads: commands are taken")
		}
		if !cut {
			b.wakeManagement() // it may have been asked to sleep by a cut too short to be seen here
		}
		wasCut = cut
		if b.cutOff(jobsUnseen) {
			b.giveBack()
		}
	}
}

// giveBack has gearmand give the jobs of this replica to another one, which learns how their builds end and can report it. No build is lost by that, also
// where nobody can lead because the API server is away for all. geard would fail the jobs, so there those stay whose build there is, whatever the reason
// of the silence. The others, which a leader may take while it loses the lead, have nothing to lose: Zuul asks again, and another replica takes that.
func (b *Bridge) giveBack() {
	for _, s := range b.sessions {
		jobs := slices.DeleteFunc(b.assignments.from(s.server.Name), func(a *assignment) bool { return a.job.Err() != nil })
		switch {
		case len(jobs) > 0 && s.behaviour.requeues():
			b.Logger.Warn("The API server does not answer: the Gearman server may give the jobs to another replica", "gearmanServer", s.server.Name, "jobs", len(jobs))
			s.builds.reconnect()
		case s.behaviour.forgets():
			for _, a := range jobs {
				b.failUnmade(a)
			}
		}
	}
}

// failUnmade fails a job whose build could not be made. Should the API server have made it all the same, the build is stopped as one nobody waits for.
func (b *Bridge) failUnmade(a *assignment) {
	a.sending.Lock()
	defer a.sending.Unlock()
	if a.existing() != nil || a.job.Fail() != nil {
		return
	}
	b.metrics.reports.WithLabelValues(resultLabel("")).Inc()
	b.Logger.With(a.logValues()...).Warn("The API server does not answer: the ZuulBuild could not be made, and Zuul is to ask again", "gearmanServer", a.server)
}

func (b *Bridge) wakeManagement() {
	for _, s := range b.sessions {
		s.management.Wake()
	}
}

// responsible tells whether it is for this replica to see to a build nobody waits for. It is for the one whose connection brought it, for nobody else
// knows whether its job lives; and for the leader when that one is gone.
func (b *Bridge) responsible(build *v1alpha1.ZuulBuild) bool {
	if b.Replicas == nil {
		return true
	}
	took := build.Labels[v1alpha1.LabelReplica]
	return took == b.Identity || b.leads.Load() && !b.Replicas.Alive(took)
}

// claim notes that the job of a build is on a connection of this replica now.
func (b *Bridge) claim(ctx context.Context, build *v1alpha1.ZuulBuild) {
	if b.Identity == "" || build.Complete() || build.Labels[v1alpha1.LabelReplica] == b.Identity {
		return
	}
	claimed := build.DeepCopy()
	claimed.Labels[v1alpha1.LabelReplica] = b.Identity
	if err := b.Client.Patch(ctx, claimed, client.MergeFrom(build)); client.IgnoreNotFound(err) != nil {
		// No harm while the replica that had it before is gone and this one leads.
		b.Logger.With(buildlog.Of(build)...).Warn("It could not be noted which replica has the build now", "error", err)
	}
}

// Ready tells whether everything was registered on every Gearman server once. It stays so when a server goes: the pages of builds need none.
func (b *Bridge) Ready() bool {
	for _, s := range b.sessions {
		if !s.ready.Load() && !s.registered() {
			return false
		}
		s.ready.Store(true)
	}
	return true
}

// Connected is how many Gearman servers there are whose every connection is there, with all functions.
func (b *Bridge) Connected() (servers int) {
	for _, s := range b.sessions {
		if s.registered() {
			servers++
		}
	}
	return servers
}

// registered tells whether every connection of the session is there, with all functions.
func (s *session) registered() bool {
	return s.connected.Load() && s.builds.connected()
}
