// Package replicas lets each replica of the operator know which others live. Each holds a Lease of its own, besides the one of the leader: a build has
// to be reported on the connection that brought it, so whoever wants to call it abandoned must know whether the replica that took it lives.
package replicas

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// State is what a replica does, told by its Lease.
type State string

// The states of a replica.
const (
	Standby  State = "Standby"  // it is ready to lead
	Leading  State = "Leading"  // it takes builds and runs Pods
	Draining State = "Draining" // it takes no build any more and ends with the last it has; where nobody else can, it leads meanwhile
)

const (
	// labelReplica on a Lease marks those of this package, and its value is the group of replicas that belong together.
	labelReplica = "zuulbuild.dev/replica"
	// AnnotationState on a replica's Lease tells people and the other replicas what it does.
	AnnotationState = "zuulbuild.dev/state"
	// AnnotationServers on it tells how many Gearman servers it is connected to.
	AnnotationServers = "zuulbuild.dev/gearman-servers"

	// Interval is how often a Lease is renewed and the others are looked at.
	Interval = 2 * time.Second
	// Duration is how long a replica that does not renew its Lease counts as alive: longer than the lease of the leader, so that nobody who still
	// thinks it leads is called dead.
	Duration = 20 * time.Second
	// chance is the least time a replica has to be seen: enough to renew its Lease twice, or to make another one where it was deleted.
	chance = 2*Interval + Interval/2
	// outdoneAfter is how long another replica must have been connected to more Gearman servers before it is to lead: a connection that was lost may be
	// back at once, and is made for each replica at another moment.
	outdoneAfter = 10 * time.Second
	// forgetAfter is when the Lease of a replica that ended without a word is cleared away.
	forgetAfter = 10 * time.Minute
)

// Replicas is this replica among the others. It is a manager.Runnable; until Start has looked once, whoever is asked for may live.
type Replicas struct {
	// Client reads and writes past any cache.
	Client client.Client
	// Namespace of the Leases.
	Namespace string
	// Group of replicas, the same for all that work together: the value of a label.
	Group string
	// Identity of this replica: a DNS label of at most 63 characters, never used twice.
	Identity string
	// Owner is what the Leases go with when it is deleted, in the same namespace; nil for nothing.
	Owner *metav1.OwnerReference
	// FindOwner finds what is in the place of an Owner that was deleted, or nil while nothing is; may be nil.
	FindOwner func(context.Context) (*metav1.OwnerReference, error)
	// Servers tells how many Gearman servers this replica is connected to; may be nil.
	Servers func() int
	Logger  *slog.Logger

	mu      sync.Mutex
	state   State
	owner   *metav1.OwnerReference // found in the place of Owner
	renewed bool                   // the Lease was there once
	others  map[string]sighting
	looked  time.Time            // when others was made; zero for never
	since   time.Time            // the first look of those without a gap between them
	missing map[string]time.Time // when it was seen that the Lease of a replica, which was there, is not
	outdone time.Time            // since when others are connected to more Gearman servers; zero while they are not
}

// sighting is what is known of another replica. Whether it lives is told by the clock of this machine alone: when its Lease was last seen to change,
// before it was last looked at.
type sighting struct {
	state   State
	servers int
	version string
	changed time.Time
}

func (s sighting) alive(looked time.Time) bool { return looked.Sub(s.changed) < Duration }

// Start keeps the Lease until ctx is done, and deletes it then.
func (r *Replicas) Start(ctx context.Context) error {
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	level := slog.LevelWarn // for the first of many equal reports
	for {
		if err := r.Refresh(ctx); err == nil {
			level = slog.LevelWarn
		} else if ctx.Err() == nil {
			r.Logger.Log(ctx, level, "The Lease of this replica could not be renewed; trying again", "replica", r.Identity, "error", err)
			level = slog.LevelDebug
		}
		select {
		case <-ctx.Done():
			r.leave(context.WithoutCancel(ctx))
			return nil
		case <-ticker.C:
		}
	}
}

// NeedLeaderElection is false: each replica has a Lease.
func (r *Replicas) NeedLeaderElection() bool { return false }

// Refresh renews the Lease of this replica and looks at the others.
func (r *Replicas) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Duration/2)
	defer cancel()
	if err := r.renew(ctx); err != nil {
		return err
	}
	leases := coordinationv1.LeaseList{}
	if err := r.Client.List(ctx, &leases, client.InNamespace(r.Namespace), client.MatchingLabels{labelReplica: r.Group}); err != nil {
		return fmt.Errorf("list the Leases of the replicas: %w", err)
	}
	now := time.Now()
	for identity, seen := range r.look(leases.Items, now) {
		if now.Sub(seen.changed) < forgetAfter {
			continue
		}
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: r.leaseName(identity)}}
		if err := r.Client.Delete(ctx, lease, client.Preconditions{ResourceVersion: &seen.version}); client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete the Lease of a replica that is gone: %w", err)
		}
	}
	return nil
}

// look takes in which replicas there are, and returns the others. Nobody is called dead by the time in which they were not looked at: when the API server
// was away, who looks first must not find that all others have not renewed their Leases.
func (r *Replicas) look(leases []coordinationv1.Lease, now time.Time) map[string]sighting {
	servers := r.servers()
	r.mu.Lock()
	defer r.mu.Unlock()
	gap := now.Sub(r.looked) > 2*Interval
	if gap {
		r.since = now
	}
	others := map[string]sighting{}
	for i := range leases {
		identity := ptr.Deref(leases[i].Spec.HolderIdentity, "")
		if identity == r.Identity || identity == "" {
			continue
		}
		seen, known := r.others[identity]
		switch {
		case !known:
			seen.changed = firstSight(&leases[i], now)
		case seen.version != leases[i].ResourceVersion || gap && seen.alive(r.looked): // which is before the gap
			seen.changed = now
		}
		seen.version, seen.state = leases[i].ResourceVersion, State(leases[i].Annotations[AnnotationState])
		seen.servers, _ = strconv.Atoi(leases[i].Annotations[AnnotationServers]) // 0 for a replica that does not tell
		others[identity] = seen
	}
	r.miss(others, now)
	r.others, r.looked = others, now
	r.compare(servers)
	return maps.Clone(others)
}

// compare notes whether another replica that can lead is connected to more Gearman servers than this one. r.mu is held.
func (r *Replicas) compare(servers int) {
	switch {
	case !r.other(func(seen sighting) bool {
		return seen.state != Draining && seen.servers > servers && r.looked.Sub(seen.changed) < chance // one that has died is not waited for
	}):
		r.outdone = time.Time{}
	case r.outdone.Before(r.since):
		r.outdone = r.looked
	}
}

func (r *Replicas) servers() int {
	if r.Servers == nil {
		return 0
	}
	return r.Servers()
}

// miss notes whose Lease is there no more. r.mu is held.
func (r *Replicas) miss(there map[string]sighting, now time.Time) {
	missing := map[string]time.Time{}
	for identity := range r.others {
		missing[identity] = now
	}
	for identity, since := range r.missing {
		if now.Sub(since) < chance {
			missing[identity] = since
		}
	}
	for identity := range there {
		delete(missing, identity)
	}
	r.missing = missing
}

// firstSight is when a Lease that was never seen before is taken to have changed last: when it says so. But as clocks differ, its replica has a chance.
func firstSight(lease *coordinationv1.Lease, now time.Time) time.Time {
	said := now
	if renewed := lease.Spec.RenewTime; renewed != nil && renewed.Time.Before(now) {
		said = renewed.Time
	}
	if least := now.Add(chance - Duration); said.Before(least) {
		return least
	}
	return said
}

// Alive tells whether a replica may live, this one included. One without a Lease has ended, if it does not make another: who deletes a Deployment and
// makes it anew has the garbage collector delete the Leases of replicas that still have builds.
func (r *Replicas) Alive(identity string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if identity == r.Identity || r.looked.IsZero() {
		return true
	}
	if seen, known := r.others[identity]; known {
		return seen.alive(r.looked)
	}
	absent := r.since
	if since, missing := r.missing[identity]; missing && since.After(absent) {
		absent = since
	}
	return r.looked.Sub(absent) < chance
}

// Unseen is for how long other replicas may have done what this one cannot know, because the API server did not answer it; 0 where no other one may live.
func (r *Replicas) Unseen() time.Duration {
	if !r.Others() {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.looked)
}

// Others tells whether another replica may live.
func (r *Replicas) Others() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.looked.IsZero() || r.other(func(sighting) bool { return true })
}

// Successor tells whether another replica is known to live that can lead.
func (r *Replicas) Successor() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.other(func(seen sighting) bool { return seen.state != Draining })
}

// Outdone tells whether another replica that can lead has been connected to more Gearman servers for a while.
func (r *Replicas) Outdone() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.outdone.IsZero() && r.looked.Sub(r.outdone) >= outdoneAfter
}

// other tells whether another replica lives that matches. r.mu is held.
func (r *Replicas) other(matches func(sighting) bool) bool {
	for _, seen := range r.others {
		if seen.alive(r.looked) && matches(seen) {
			return true
		}
	}
	return false
}

// SetState says what this replica does. The others learn it with the next renewal. One that drains does so until its end: it may lead meanwhile, where
// nobody else can, but nobody may take it for one that can lead in their place.
func (r *Replicas) SetState(state State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != Draining {
		r.state = state
	}
}

// State is what this replica does.
func (r *Replicas) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == "" {
		return Standby
	}
	return r.state
}

func (r *Replicas) leaseName(identity string) string { return "zuulbuild-replica-" + identity }

// renew writes the Lease of this replica, whatever it was: nobody else writes it.
func (r *Replicas) renew(ctx context.Context) error {
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.Namespace, Name: r.leaseName(r.Identity),
			Labels: map[string]string{labelReplica: r.Group}, Annotations: map[string]string{
				AnnotationState: string(r.State()), AnnotationServers: strconv.Itoa(r.servers()),
			},
			OwnerReferences: r.owners(),
		},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: &r.Identity, LeaseDurationSeconds: ptr.To(int32(Duration.Seconds())), RenewTime: ptr.To(metav1.NowMicro()),
		},
	}
	content, err := json.Marshal(lease)
	if err == nil {
		err = r.Client.Patch(ctx, lease.DeepCopy(), client.RawPatch(types.MergePatchType, content))
	}
	if apierrors.IsNotFound(err) {
		if err = r.seekOwner(ctx); err == nil {
			lease.OwnerReferences = r.owners()
			err = r.Client.Create(ctx, lease)
		}
	}
	if err != nil {
		return fmt.Errorf("renew Lease %s: %w", types.NamespacedName{Namespace: lease.Namespace, Name: lease.Name}, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.renewed = true
	return nil
}

// seekOwner looks for another owner if the Lease was there and is not: it may have gone with its owner, and would again. While there is no other, it is
// to go: the replicas are uninstalled, and may not have the right to delete their Leases when they end.
func (r *Replicas) seekOwner(ctx context.Context) error {
	r.mu.Lock()
	renewed := r.renewed
	r.mu.Unlock()
	if !renewed || r.FindOwner == nil {
		return nil
	}
	owner, err := r.FindOwner(ctx)
	if err != nil || owner == nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owner = owner
	return nil
}

// owners are what the Leases go with: one owner or none.
func (r *Replicas) owners() []metav1.OwnerReference {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, owner := range []*metav1.OwnerReference{r.owner, r.Owner} {
		if owner != nil {
			return []metav1.OwnerReference{*owner}
		}
	}
	return nil
}

// GiveOwner gives a Lease of the same namespace, which others write, the owner that those of the replicas have. Where it has it already, nothing is written.
func (r *Replicas) GiveOwner(ctx context.Context, name string) error {
	owners := r.owners()
	if len(owners) == 0 {
		return nil
	}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: name}}
	content, err := json.Marshal(map[string]any{"metadata": map[string]any{"ownerReferences": owners}})
	if err == nil {
		err = r.Client.Patch(ctx, lease, client.RawPatch(types.StrategicMergePatchType, content)) // which adds to the owners there are
	}
	if err != nil {
		return fmt.Errorf("give Lease %s its owner: %w", client.ObjectKeyFromObject(lease), err)
	}
	return nil
}

// leave deletes the Lease, so that nobody waits for this replica.
func (r *Replicas) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: r.leaseName(r.Identity)}}
	if err := r.Client.Delete(ctx, lease); client.IgnoreNotFound(err) != nil {
		r.Logger.Warn("The Lease of this replica could not be deleted; it runs out", "replica", r.Identity, "error", err)
	}
}
