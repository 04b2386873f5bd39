package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildnumber"
	"zuulbuild.dev/zuulbuild/gearmanbridge"
	"zuulbuild.dev/zuulbuild/replicas"
)

// leadership decides when this replica leads. The manager under it runs all the time: cache, pages, and the bridge with the builds it took. While it
// leads, the controllers run as well and the bridge takes builds, unless it drains.
type leadership struct {
	manager   ctrl.Manager
	bridge    *gearmanbridge.Bridge
	numbers   *buildnumber.Sequence
	mates     *replicas.Replicas // nil: this replica is alone, and leads always
	group     string             // of replicas that stand for the same lease
	namespace string             // of the lease
	lease     time.Duration      // how long a lease holds that is not renewed
	// setup adds the controllers to the manager of one term.
	setup    func(ctx context.Context, term ctrl.Manager) error
	logger   *slog.Logger
	draining atomic.Bool
}

// Start has this replica stand for election again and again until ctx is done, except while another one is to lead in its place. It returns an error if
// the controllers cannot run at all.
func (l *leadership) Start(ctx context.Context) error {
	for await(ctx, func() bool { return !l.yields() }) {
		yielded, err := l.stand(ctx)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // ended as asked
		case yielded:
		case err != nil && err.Error() == leaseLost:
			l.logger.Warn("This replica leads no more: it reports the builds it has, and stands for election again")
		default:
			return err
		}
	}
	return nil
}

// stand has this replica stand for election until it has led and leads no more, or yields to another one.
func (l *leadership) stand(ctx context.Context) (yielded bool, err error) {
	term, end := context.WithCancel(ctx)
	defer end()
	go func() {
		if await(term, l.yields) {
			l.logger.Info("Another replica is there to lead", "draining", l.drains())
			end()
		}
	}()
	err = l.serve(term)
	if ctx.Err() == nil {
		l.say(replicas.Standby)
	}
	return term.Err() != nil, err
}

// yields tells whether another replica is to lead in place of this one, because this one drains or is connected to fewer Gearman servers. It may be that
// there is one now and soon none, when several replicas are told to end at once; then this one stands again. While it drains it takes no builds, but
// those it has must end.
func (l *leadership) yields() bool {
	return l.mates != nil && (l.drains() && l.mates.Successor() || l.mates.Outdone())
}

// drain has this replica take no more builds; the bridge is told by itself.
func (l *leadership) drain() {
	l.draining.Store(true)
	l.say(replicas.Draining)
}

func (l *leadership) drains() bool { return l.draining.Load() }

// await returns true when the condition holds, or false when ctx is done.
func await(ctx context.Context, condition func() bool) bool {
	ticker := time.NewTicker(replicas.Interval / 4)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
	return ctx.Err() == nil
}

// leaseName is the Lease whose holder leads.
func (l *leadership) leaseName() string { return l.group + "." + v1alpha1.GroupVersion.Group }

// longestLease is the longest --leader-lease: a leader that nobody answers believes that it leads for 4/3 of it, and may not be called dead meanwhile.
const longestLease = replicas.Duration * 3 / 4

// leaseLost is the error of a manager that leads no more, which has no value of its own.
const leaseLost = "leader election lost"

// serve stands for election once, and leads from then on until ctx is done or the lease is lost.
func (l *leadership) serve(ctx context.Context) error {
	term, err := l.newTerm()
	if err != nil {
		return err
	}
	if err := l.setup(ctx, term); err != nil {
		return err
	}
	var mu sync.Mutex
	over := false
	err = term.Add(manager.RunnableFunc(func(ctx context.Context) error {
		l.refresh(ctx)
		l.giveOwner(ctx)
		mu.Lock()
		defer mu.Unlock()
		if !over && ctx.Err() == nil {
			l.logger.Info("This replica leads: it runs Pods, and takes builds unless it drains")
			l.numbers.Lead()
			l.bridge.Lead()
			l.say(replicas.Leading)
		}
		return nil
	}))
	if err != nil {
		return err
	}
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
		l.bridge.Follow()
		l.leaveNumbers(ctx)
	}()
	return term.Start(ctx)
}

// newTerm is a manager for what only the leader runs. It shares the cache, so that a replica that is elected knows all builds already.
func (l *leadership) newTerm() (ctrl.Manager, error) {
	return ctrl.NewManager(l.manager.GetConfig(), ctrl.Options{
		Scheme: l.manager.GetScheme(),
		NewCache: func(*rest.Config, cache.Options) (cache.Cache, error) {
			return &termCache{Cache: l.manager.GetCache()}, nil
		},
		NewClient: func(*rest.Config, client.Options) (client.Client, error) {
			return l.manager.GetClient(), nil
		},
		Metrics:                       noMetrics,
		HealthProbeBindAddress:        "0",
		Controller:                    config.Controller{SkipNameValidation: ptr.To(true)}, // the controllers of the next term have the same names
		LeaderElection:                l.mates != nil,
		LeaderElectionID:              l.leaseName(),
		LeaderElectionNamespace:       l.namespace,
		LeaderElectionReleaseOnCancel: true,
		// The lead may well be lost while the API server is away for a moment: reports go on, and a new term costs little. So it is short.
		LeaseDuration: ptr.To(l.lease),
		RenewDeadline: ptr.To(l.lease * 2 / 3),
		RetryPeriod:   ptr.To(l.lease / 6),
	})
}

// leaveNumbersWithin bounds how long the next term waits for what it does not need, and leaveLastNumbersWithin how long the end does.
const leaveNumbersWithin, leaveLastNumbersWithin = 2 * time.Second, 10 * time.Second

// leaveNumbers has the build numbers that are set aside go to the next leader. It may be because the API server is away that this one leads no more:
// then they are skipped.
func (l *leadership) leaveNumbers(ctx context.Context) {
	within := leaveNumbersWithin
	if l.drains() {
		within = leaveLastNumbersWithin
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	if err := l.numbers.Release(ctx); err != nil {
		l.logger.Info("Some build numbers will be skipped", "error", err)
	}
}

// refresh looks once more who lives, because a leader calls the builds of those who do not abandoned. It tries for as long as one that lives counts as
// alive without a sign: who leads without having looked must not take for dead who was started meanwhile.
func (l *leadership) refresh(ctx context.Context) {
	if l.mates == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, replicas.Duration)
	defer cancel()
	await(ctx, func() bool {
		err := l.mates.Refresh(ctx)
		if err != nil && ctx.Err() == nil {
			l.logger.Warn("It is not known which replicas live; asking again", "error", err)
		}
		return err == nil
	})
}

// giveOwner has the Lease of the leader go with the replicas'. It is no reason not to lead that it stays behind.
func (l *leadership) giveOwner(ctx context.Context) {
	if l.mates == nil {
		return
	}
	if err := l.mates.GiveOwner(ctx, l.leaseName()); err != nil && ctx.Err() == nil {
		l.logger.Warn("The Lease of the leader would outlive an uninstallation", "error", err)
	}
}

func (l *leadership) say(state replicas.State) {
	if l.mates != nil {
		l.mates.SetState(state)
	}
}

// ownNamespace is the namespace this Pod is in.
func ownNamespace() (string, error) {
	content, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
	if err != nil {
		return "", fmt.Errorf("no namespace for the leases of the replicas, since this does not run in a cluster; give --leader-namespace, or --leader-elect=false to run alone")
	}
	return strings.TrimSpace(string(content)), nil
}

var notInLabels = regexp.MustCompile(`[^a-z0-9-]+`)

// newIdentity names this process among the replicas: a DNS label that begins with the host, for people.
func newIdentity(hostname string) string {
	const longest, random = 50, 6
	host := strings.Trim(notInLabels.ReplaceAllString(strings.ToLower(hostname), "-"), "-")
	host = strings.Trim(host[:min(len(host), longest-random-1)], "-")
	return strings.TrimPrefix(host+"-"+strings.ToLower(rand.Text()[:random]), "-")
}

// setupReplicas has the replicas know each other, unless this one is to be alone.
func (o *operatorOptions) setupReplicas(ctx context.Context, mgr ctrl.Manager, lead *leadership, hostname string) error {
	if !o.leaderElect {
		return nil
	}
	lead.group, lead.namespace, lead.lease = cmp.Or(o.leaderDeployment, "zuulbuild"), o.leaderNamespace, o.leaderLease
	if lead.namespace == "" {
		var err error
		if lead.namespace, err = ownNamespace(); err != nil {
			return err
		}
	}
	direct, err := client.New(mgr.GetConfig(), client.Options{Scheme: mgr.GetScheme()})
	if err != nil {
		return err
	}
	lead.mates = &replicas.Replicas{
		Client: direct, Namespace: lead.namespace, Group: lead.group, Identity: newIdentity(hostname), Servers: lead.bridge.Connected, Logger: lead.logger,
	}
	if lead.mates.Owner, err = o.leaseOwner(ctx, direct, lead); err != nil {
		return err
	}
	if lead.mates.Owner != nil {
		lead.mates.FindOwner = func(ctx context.Context) (*metav1.OwnerReference, error) {
			owner, err := o.leaseOwner(ctx, direct, lead)
			return owner, client.IgnoreNotFound(err)
		}
	}
	lead.bridge.Replicas, lead.bridge.Identity = lead.mates, lead.mates.Identity
	return mgr.Add(lead.mates)
}

// leaseOwner is what the Leases go with. Who may not look at the Deployment has them stay.
func (o *operatorOptions) leaseOwner(ctx context.Context, direct client.Reader, lead *leadership) (*metav1.OwnerReference, error) {
	if o.leaderDeployment == "" {
		return nil, nil
	}
	deployment := &appsv1.Deployment{}
	switch err := direct.Get(ctx, client.ObjectKey{Namespace: lead.namespace, Name: o.leaderDeployment}, deployment); {
	case apierrors.IsForbidden(err):
		lead.logger.Warn("The Leases will outlive an uninstallation: the Deployment of --leader-deployment cannot be read", "error", err)
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("--leader-deployment: %w", err)
	}
	return &metav1.OwnerReference{APIVersion: appsv1.SchemeGroupVersion.String(), Kind: "Deployment", Name: deployment.Name, UID: deployment.UID}, nil
}
