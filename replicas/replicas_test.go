package replicas

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func lease(identity string, version int, renewed time.Time, state State) coordinationv1.Lease {
	return coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{ResourceVersion: strconv.Itoa(version), Annotations: map[string]string{AnnotationState: string(state)}},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &identity, RenewTime: ptr.To(metav1.NewMicroTime(renewed))},
	}
}

// look is what one look finds of another replica.
type look struct {
	at      time.Duration // after noon
	version int           // of its Lease; 0: it is gone
	renewed time.Duration // when the Lease says that it was
}

// looks are those that Start has, from one time to another, while the Lease does not change.
func looks(from, to time.Duration, version int) (looks []look) {
	for at := from; at <= to; at += Interval {
		looks = append(looks, look{at: at, version: version, renewed: from})
	}
	return looks
}

// TestSighting: how long a replica counts as alive, by when its Lease was seen to change and not by what its clock says, nor by time in which nobody
// looked.
func TestSighting(t *testing.T) {
	const almost = Duration - Interval
	for name, test := range map[string]struct {
		looks []look
		alive bool
	}{
		"never looked":                          {alive: true},
		"no Lease yet":                          {looks: looks(0, 2*Interval, 0), alive: true},
		"no Lease":                              {looks: looks(0, 3*Interval, 0)},
		"just renewed":                          {looks: looks(0, 0, 1), alive: true},
		"not renewed for almost a duration":     {looks: looks(0, almost, 1), alive: true},
		"not renewed for a duration":            {looks: looks(0, Duration, 1)},
		"renewed":                               {looks: slices.Concat(looks(0, almost, 1), looks(Duration, 2*almost, 2)), alive: true},
		"renewed by a clock that is late":       {looks: []look{{version: 1, renewed: -time.Hour}, {at: Interval, version: 2, renewed: -time.Hour}}, alive: true},
		"first seen by a clock that is late":    {looks: []look{{version: 1, renewed: -time.Hour}, {at: 2 * Interval, version: 1}}, alive: true},
		"first seen long after its end":         {looks: []look{{version: 1, renewed: -time.Hour}, {at: 2 * Interval, version: 1}, {at: 3 * Interval, version: 1}}},
		"first seen, renewed in the future":     {looks: append([]look{{version: 1, renewed: time.Hour}}, looks(Interval, Duration, 1)...)},
		"just gone":                             {looks: slices.Concat(looks(0, Duration/2, 1), looks(Duration/2+Interval, Duration/2+3*Interval, 0)), alive: true},
		"gone":                                  {looks: slices.Concat(looks(0, Duration/2, 1), looks(Duration/2+Interval, Duration/2+4*Interval, 0))},
		"nobody looked for long, and gone":      {looks: []look{{version: 1}, {at: 30 * time.Second}}, alive: true},
		"deleted and made anew":                 {looks: []look{{version: 1}, {at: Interval}, {at: 2 * Interval, version: 2, renewed: 2 * Interval}}, alive: true},
		"nobody looked for long":                {looks: []look{{version: 1}, {at: 30 * time.Second, version: 1}}, alive: true},
		"dead, and then nobody looked for long": {looks: append(looks(0, Duration, 1), look{at: Duration + 30*time.Second, version: 1})},
		"nobody looked for long, and then for almost a duration": {
			looks: append(looks(0, 0, 1), looks(30*time.Second, 30*time.Second+almost, 1)...), alive: true},
		"nobody looked for long, and then for a duration": {
			looks: append(looks(0, 0, 1), looks(30*time.Second, 30*time.Second+Duration, 1)...)},
	} {
		t.Run(name, func(t *testing.T) {
			r := Replicas{Identity: "self"}
			for _, look := range test.looks {
				var leases []coordinationv1.Lease
				if look.version > 0 {
					leases = append(leases, lease("other", look.version, noon.Add(look.renewed), Leading))
				}
				r.look(leases, noon.Add(look.at))
			}
			if alive := r.Alive("other"); alive != test.alive {
				t.Errorf("alive: %v", alive)
			}
		})
	}
}

// TestDrainingIsFinal: a replica that drains is nobody's successor, whether it loses the lead or is elected once more.
func TestDrainingIsFinal(t *testing.T) {
	for _, next := range []State{Standby, Leading} {
		r := Replicas{}
		r.SetState(Leading)
		r.SetState(Draining)
		r.SetState(next)
		if r.state != Draining {
			t.Errorf("a replica that drains says %s", r.state)
		}
	}
}

// TestOutdone: a replica gives way to one that is connected to more Gearman servers, if that one can lead and has had them for a while.
func TestOutdone(t *testing.T) {
	type look struct {
		at         time.Duration
		own, other int
		state      State
		dead       bool // the other, which tells what it did before
	}
	regularly := func(from, to time.Duration, own, other int, state State) (looks []look) {
		for at := from; at <= to; at += Interval {
			looks = append(looks, look{at: at, own: own, other: other, state: state})
		}
		return looks
	}
	died := func(from, to time.Duration, own, other int) (looks []look) {
		for _, look := range regularly(from, to, own, other, Leading) {
			look.dead = true
			looks = append(looks, look)
		}
		return looks
	}
	for name, test := range map[string]struct {
		looks   []look
		outdone bool
	}{
		"never looked":      {},
		"as many":           {looks: regularly(0, time.Minute, 1, 1, Standby)},
		"fewer":             {looks: regularly(0, time.Minute, 2, 1, Standby)},
		"more":              {looks: regularly(0, outdoneAfter, 1, 2, Standby), outdone: true},
		"more, not yet":     {looks: regularly(0, outdoneAfter-Interval, 1, 2, Standby)},
		"more, and drains":  {looks: regularly(0, time.Minute, 0, 1, Draining)},
		"connected again":   {looks: append(regularly(0, outdoneAfter, 0, 1, Leading), look{at: outdoneAfter + Interval, own: 1, other: 1})},
		"for a moment only": {looks: append(regularly(0, 10*Interval, 1, 1, Standby), regularly(11*Interval, 12*Interval, 0, 1, Standby)...)},
		"lost once more": {looks: slices.Concat(regularly(0, Interval, 0, 1, Standby), regularly(2*Interval, 2*Interval, 1, 1, Standby),
			regularly(3*Interval, 5*Interval, 0, 1, Standby))},
		"nobody looked for long": {looks: []look{{other: 1}, {at: time.Minute, other: 1}}},
		"more, and has died":     {looks: append([]look{{own: 1, other: 2, state: Leading}}, died(Interval, Duration-Interval, 1, 2)...)},
	} {
		t.Run(name, func(t *testing.T) {
			own, version := 0, 0
			r := Replicas{Identity: "self", Servers: func() int { return own }}
			for _, look := range test.looks {
				if own = look.own; !look.dead {
					version++
				}
				other := lease("other", version, noon.Add(look.at), look.state)
				other.Annotations[AnnotationServers] = strconv.Itoa(look.other)
				r.look([]coordinationv1.Lease{other}, noon.Add(look.at))
			}
			if r.Outdone() != test.outdone {
				t.Errorf("outdone: %v", r.Outdone())
			}
		})
	}
}

// TestUnseen: what others do is unseen since the last look, unless there was nobody else.
func TestUnseen(t *testing.T) {
	others := []coordinationv1.Lease{lease("other", 1, noon, Standby)}
	for name, test := range map[string]struct {
		looks    [][]coordinationv1.Lease // the last one a minute ago
		from, to time.Duration
	}{
		"never looked": {from: Duration, to: 1<<63 - 1},
		"another one":  {looks: [][]coordinationv1.Lease{others}, from: time.Minute, to: 2 * time.Minute},
		"nobody else":  {looks: [][]coordinationv1.Lease{others, nil}},
	} {
		r := Replicas{Identity: "self"}
		for _, leases := range test.looks {
			r.look(leases, time.Now().Add(-time.Minute))
		}
		if unseen := r.Unseen(); unseen < test.from || unseen > test.to {
			t.Errorf("%s: unseen for %v, want %v to %v", name, unseen, test.from, test.to)
		}
	}
}

// TestReplicas: two replicas on a real API server learn of each other, what the other does, and its end.
func TestReplicas(t *testing.T) {
	api, err := client.New(apiserver.Config(t), client.Options{Scheme: clientgoscheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	namespace := apiserver.Namespace(t)
	start := func(group, identity string) (replica *Replicas, stop func()) {
		replica = &Replicas{Client: api, Namespace: namespace, Group: group, Identity: identity, Logger: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = replica.Start(ctx)
		}()
		stop = func() { cancel(); <-ended }
		t.Cleanup(stop)
		return replica, stop
	}
	eventually := func(what string, condition func() bool) {
		t.Helper()
		gearmantest.Eventually(t, 2*time.Minute, what, condition)
	}
	first, _ := start("group", "first")
	second, stopSecond := start("group", "second")
	stranger, _ := start("other-group", "stranger")
	eventually("each sees the other", func() bool { return first.Successor() && second.Successor() })
	eventually("the stranger is none of them", func() bool { return !stranger.Others() && !first.Alive("stranger") })
	if !first.Alive("first") || !first.Alive("second") || !second.Alive("first") {
		t.Error("a replica does not know itself, or the other one no more")
	}
	second.SetState(Draining)
	eventually("no successor", func() bool { return first.Others() && !first.Successor() })
	stopSecond()
	eventually("the end of the second", func() bool { return !first.Others() && !first.Alive("second") })
}

// TestOwner: a replica's own Lease and the one it is to have the same owner have it, once, whoever else owns them.
func TestOwner(t *testing.T) {
	api, err := client.New(apiserver.Config(t), client.Options{Scheme: clientgoscheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	owner := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "zuulbuild", UID: "deployment"}
	other := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "other", UID: "other"}
	namespace := apiserver.Namespace(t)
	shared := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "shared", OwnerReferences: []metav1.OwnerReference{other}}}
	if err := api.Create(t.Context(), shared); err != nil {
		t.Fatal(err)
	}
	r := &Replicas{Client: api, Namespace: namespace, Group: "group", Identity: "first", Owner: &owner, Logger: slog.New(slog.DiscardHandler)}
	for range 2 {
		if err := errors.Join(r.Refresh(t.Context()), r.GiveOwner(t.Context(), shared.Name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.GiveOwner(t.Context(), "missing"); !apierrors.IsNotFound(err) {
		t.Errorf("a Lease that is not there: %v", err)
	}
	for name, want := range map[string][]metav1.OwnerReference{r.leaseName("first"): {owner}, shared.Name: {other, owner}} {
		lease := &coordinationv1.Lease{}
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, lease); err != nil {
			t.Fatal(err)
		}
		byName := cmpopts.SortSlices(func(a, b metav1.OwnerReference) bool { return a.Name < b.Name })
		if diff := cmp.Diff(want, lease.OwnerReferences, byName); diff != "" {
			t.Errorf("owners of %s (-want +got):\n%s", name, diff)
		}
	}
}

// TestOwnerIsGone: a Lease that was deleted with its owner is made again for what is in its place, and stays; while nothing is, it may be deleted again.
func TestOwnerIsGone(t *testing.T) {
	api, err := client.New(apiserver.Config(t), client.Options{Scheme: clientgoscheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	owner := func(uid types.UID) *metav1.OwnerReference {
		return &metav1.OwnerReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "zuulbuild", UID: uid}
	}
	var now *metav1.OwnerReference // in the place of the owner that is deleted
	r := &Replicas{
		Client: api, Namespace: apiserver.Namespace(t), Group: "group", Identity: "first", Owner: owner("before"), Logger: slog.New(slog.DiscardHandler),
		FindOwner: func(context.Context) (*metav1.OwnerReference, error) { return now, nil },
	}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: r.leaseName(r.Identity)}}
	for _, test := range []struct {
		found *metav1.OwnerReference
		want  types.UID
	}{{nil, "before"}, {nil, "before"}, {owner("after"), "after"}, {nil, "after"}} {
		now = test.found
		if err := r.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(lease), lease); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]metav1.OwnerReference{*owner(test.want)}, lease.OwnerReferences); diff != "" {
			t.Errorf("owners (-want +got):\n%s", diff)
		}
		if err := api.Delete(t.Context(), lease); err != nil { // as the garbage collector does
			t.Fatal(err)
		}
	}
}
