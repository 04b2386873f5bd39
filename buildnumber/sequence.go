// Package buildnumber gives out build numbers: integers from 1, rising per job, never given twice, also across restarts and for builds made by
// hand. Jobs of one Gearman name in several namespaces are one here as long as there are builds to tell, because Zuul names a build by that name and its
// number. The package is a room of its own because both halves of the operator number builds and neither may call the other.
package buildnumber

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// IndexJob is the field index over ZuulBuilds that a Sequence lists by.
const IndexJob = "spec.job"

// SetupIndex registers IndexJob.
func SetupIndex(ctx context.Context, indexer client.FieldIndexer) error {
	return indexer.IndexField(ctx, &v1alpha1.ZuulBuild{}, IndexJob, func(object client.Object) []string {
		return []string{object.(*v1alpha1.ZuulBuild).Spec.Job}
	})
}

// blockSize is how many numbers one write to a ZuulJob sets aside. A write a build would be the costliest thing about a number; the price is
// that at most this many are skipped when the operator ends without saying so.
const blockSize = 20

// maxElsewhere is the highest number of a build that raises those of its job in other namespaces. It leaves as much room as the highest firstBuildNumber:
// namespaces are a border, and who may make builds in one shall not use up the numbers of another.
const maxElsewhere = 9007198254740991

// Sequence gives out the numbers of all jobs. Several may be at work, as while a replica that leads no more takes in its last builds: each sets numbers
// of its own aside. Only the leader's then rise, so who leads no more keeps none (Follow): it would go on with them, when it leads again, below those
// that the other gave meanwhile.
type Sequence struct {
	// Client reads builds from a cache that has IndexJob, and writes the status of ZuulJobs.
	Client client.Client
	// Live reads past the cache.
	Live client.Reader

	mu      sync.Mutex
	follows bool
	jobs    map[jobKey]*block
	given   map[string]int64 // the last number by the Gearman name, whatever the namespace; up to maxElsewhere
}

// Lead has numbers set aside in blocks, as they are at first.
func (s *Sequence) Lead() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.follows = false
}

// Follow forgets the numbers set aside, and until Lead has each that is asked for set aside by itself. giveBack has those go to the next leader that no
// other has gone past, so that there is no gap.
func (s *Sequence) Follow() (giveBack func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.follows = true
	jobs := s.jobs
	s.jobs = nil
	return func(ctx context.Context) error {
		var problems []error
		for key, b := range jobs {
			problems = append(problems, s.giveBack(ctx, key.NamespacedName, b))
		}
		return errors.Join(problems...)
	}
}

type jobKey struct {
	types.NamespacedName
	job string
}

// block holds the numbers (last, limit] that are set aside and not given.
type block struct {
	mu          sync.Mutex
	last, limit int64
}

// Next gives the next number of a job: `job` is its Gearman name, `key` its ZuulJob. A ZuulJob that is gone still has its builds numbered, from the
// builds that exist.
func (s *Sequence) Next(ctx context.Context, key types.NamespacedName, job string) (int64, error) {
	b := s.block(jobKey{key, job})
	b.mu.Lock()
	defer b.mu.Unlock()
	for !s.take(job, b) {
		if err := s.setAside(ctx, key, job, b); err != nil {
			return 0, fmt.Errorf("set build numbers of ZuulJob %s aside: %w", key, err)
		}
	}
	return b.last, nil
}

// take moves a block on to its next number; false if it has none above those given elsewhere.
func (s *Sequence) take(job string, b *block) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.last = min(max(b.last, s.given[job]), b.limit)
	if b.last == b.limit {
		return false
	}
	b.last++
	if s.given == nil {
		s.given = map[string]int64{}
	}
	if b.last <= maxElsewhere {
		s.given[job] = b.last
	}
	return true
}

// lastGiven is the last number that this process gave to a job of the name.
func (s *Sequence) lastGiven(job string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.given[job]
}

func (s *Sequence) block(key jobKey) *block {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs == nil {
		s.jobs = map[jobKey]*block{}
	}
	if s.jobs[key] == nil {
		s.jobs[key] = &block{}
	}
	return s.jobs[key]
}

// size is how many numbers are set aside at once.
func (s *Sequence) size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.follows {
		return 1
	}
	return blockSize
}

// overtaken is how setAside goes on when another writer was first. Each time somebody else got on, so it takes many before a build stays without number.
var overtaken = wait.Backoff{Steps: 12, Duration: 10 * time.Millisecond, Factor: 1.5, Jitter: 0.5}

// setAside raises lastNumber of the ZuulJob above every number that was ever given. The resource version makes a second writer fail rather than
// set the same numbers aside.
func (s *Sequence) setAside(ctx context.Context, key types.NamespacedName, name string, b *block) error {
	used, err := s.highest(ctx, key.Namespace, name)
	if err != nil {
		return err
	}
	used = max(used, s.lastGiven(name))
	return retry.RetryOnConflict(overtaken, func() error {
		job := &v1alpha1.ZuulJob{}
		if err := s.Live.Get(ctx, key, job); apierrors.IsNotFound(err) {
			b.last = max(b.last, used)
			b.limit = b.last + 1
			return nil
		} else if err != nil {
			return err
		}
		first := max(b.last, used, job.Status.LastNumber, job.Spec.FirstBuildNumber-1)
		limit := first + s.size()
		if err := s.writeLast(ctx, job, limit); err != nil {
			return err
		}
		b.last, b.limit = first, limit
		return nil
	})
}

// highest number among the builds of a job that exist, also in other namespaces: the job may have been there before.
func (s *Sequence) highest(ctx context.Context, namespace, job string) (int64, error) {
	builds := v1alpha1.ZuulBuildList{}
	if err := s.Client.List(ctx, &builds, client.MatchingFields{IndexJob: job}, client.UnsafeDisableDeepCopy); err != nil {
		return 0, err
	}
	var highest int64
	for i := range builds.Items {
		if number := builds.Items[i].Spec.Number; builds.Items[i].Namespace == namespace || number <= maxElsewhere {
			highest = max(highest, number)
		}
	}
	return highest, nil
}

func (s *Sequence) writeLast(ctx context.Context, job *v1alpha1.ZuulJob, last int64) error {
	before := job.DeepCopy()
	job.Status.LastNumber = last
	return s.Client.Status().Patch(ctx, job, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// giveBack returns what is left of a block, which nobody is given any more.
func (s *Sequence) giveBack(ctx context.Context, key types.NamespacedName, b *block) error {
	if !b.mu.TryLock() {
		return nil // a number of it is on its way, and the API server may be away: not worth waiting for
	}
	last, limit := b.last, b.limit
	b.limit = last
	b.mu.Unlock()
	if last == limit {
		return nil
	}
	job := &v1alpha1.ZuulJob{}
	if err := s.Live.Get(ctx, key, job); err != nil {
		return client.IgnoreNotFound(err)
	}
	if job.Status.LastNumber != limit {
		return nil
	}
	if err := s.writeLast(ctx, job, last); err != nil && !apierrors.IsConflict(err) {
		return client.IgnoreNotFound(err)
	}
	return nil
}

// Release gives back the numbers set aside and not given, at a clean end, so that the next operator goes on without a gap.
func (s *Sequence) Release(ctx context.Context) error { return s.Follow()(ctx) }
