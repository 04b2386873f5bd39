package buildnumber_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildnumber"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	apiserver.Main(m)
}

// harness is a namespace with jobs, and as many operators, one after the other, as a test wants.
type harness struct {
	*testing.T
	api       client.Client
	namespace string
	scheme    *runtime.Scheme
	elsewhere string // another namespace, where there is one
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	api, err := client.New(apiserver.Config(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return &harness{T: t, api: api, namespace: apiserver.Namespace(t), scheme: scheme}
}

// sequence is that of an operator which has just started, with a cache that has caught up.
func (h *harness) sequence() *buildnumber.Sequence {
	h.Helper()
	namespaces := map[string]cache.Config{h.namespace: {}}
	if h.elsewhere != "" {
		namespaces[h.elsewhere] = cache.Config{}
	}
	builds, err := cache.New(apiserver.Config(h), cache.Options{Scheme: h.scheme, DefaultNamespaces: namespaces})
	if err != nil {
		h.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := buildnumber.SetupIndex(ctx, builds); err != nil {
		h.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- builds.Start(ctx) }()
	h.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.Errorf("the cache ended: %v", err)
		}
	})
	if !builds.WaitForCacheSync(ctx) {
		h.Fatal("the cache did not fill")
	}
	reading, err := client.New(apiserver.Config(h), client.Options{Scheme: h.scheme, Cache: &client.CacheOptions{Reader: builds}})
	if err != nil {
		h.Fatal(err)
	}
	return &buildnumber.Sequence{Client: reading, Live: h.api}
}

func (h *harness) key(job string) types.NamespacedName {
	return types.NamespacedName{Namespace: h.namespace, Name: job}
}

func (h *harness) job(name string, first int64) {
	h.Helper()
	h.create(&v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: h.namespace}, Spec: v1alpha1.ZuulJobSpec{Image: "i", Script: "s", FirstBuildNumber: first}})
}

func (h *harness) build(job string, number int64) {
	h.Helper()
	h.create(&v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "b-", Namespace: h.namespace}, Spec: v1alpha1.ZuulBuildSpec{Job: job, Number: number},
	})
}

func (h *harness) create(object client.Object) {
	h.Helper()
	if err := h.api.Create(h.Context(), object); err != nil {
		h.Fatal(err)
	}
}

func (h *harness) next(sequence *buildnumber.Sequence, job string) int64 {
	h.Helper()
	number, err := sequence.Next(h.Context(), h.key(job), job)
	if err != nil {
		h.Fatal(err)
	}
	return number
}

func (h *harness) take(sequence *buildnumber.Sequence, job string, count int) (numbers []int64) {
	h.Helper()
	for range count {
		numbers = append(numbers, h.next(sequence, job))
	}
	return numbers
}

func (h *harness) release(sequence *buildnumber.Sequence) {
	h.Helper()
	if err := sequence.Release(h.Context()); err != nil {
		h.Fatal(err)
	}
}

func (h *harness) lastNumber(job string) int64 {
	h.Helper()
	object := &v1alpha1.ZuulJob{}
	if err := h.api.Get(h.Context(), h.key(job), object); err != nil {
		h.Fatal(err)
	}
	return object.Status.LastNumber
}

func from(first int64, count int) (numbers []int64) {
	for i := range count {
		numbers = append(numbers, first+int64(i))
	}
	return numbers
}

func (h *harness) compare(want, got any) {
	h.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		h.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNumbersRiseByOne(t *testing.T) {
	h := newHarness(t)
	h.job("a", 0)
	h.job("b", 0)
	s := h.sequence()
	h.compare(from(1, 45), h.take(s, "a", 45)) // across two writes
	h.compare(from(1, 3), h.take(s, "b", 3))
	h.compare(from(46, 2), h.take(s, "a", 2))
}

func TestFirstBuildNumber(t *testing.T) {
	h := newHarness(t)
	h.job("a", 1000)
	h.compare(from(1000, 3), h.take(h.sequence(), "a", 3))
}

func TestRaisedFirstBuildNumber(t *testing.T) {
	h := newHarness(t)
	h.job("a", 0)
	s := h.sequence()
	h.take(s, "a", 3)
	h.release(s)
	job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: h.namespace, Name: "a"}}
	if err := h.api.Patch(t.Context(), job, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"firstBuildNumber":500}}`))); err != nil {
		t.Fatal(err)
	}
	h.compare(int64(500), h.next(h.sequence(), "a"))
}

func TestCleanEndLeavesNoGap(t *testing.T) {
	h := newHarness(t)
	h.job("a", 0)
	h.job("b", 0)
	s := h.sequence()
	h.take(s, "a", 3)
	h.take(s, "b", 20) // all that were set aside
	h.release(s)
	h.compare([]int64{3, 20}, []int64{h.lastNumber("a"), h.lastNumber("b")})
	s = h.sequence()
	h.compare([]int64{4, 21}, []int64{h.next(s, "a"), h.next(s, "b")})
}

// TestUncleanEndNeverRepeats: numbers given by an operator that was killed may have been used, though no object says so.
func TestUncleanEndNeverRepeats(t *testing.T) {
	h := newHarness(t)
	h.job("a", 0)
	var last int64
	for range 4 {
		s := h.sequence()
		for _, number := range h.take(s, "a", 5) {
			if number <= last {
				t.Errorf("%d after %d", number, last)
			}
			last = number
		}
		if last > h.lastNumber("a") {
			t.Errorf("%d was given, but lastNumber is %d", last, h.lastNumber("a"))
		}
	}
}

// TestReleaseAfterAnotherTookOver: what a second operator has set aside is not given back by the first.
func TestReleaseAfterAnotherTookOver(t *testing.T) {
	h := newHarness(t)
	h.job("a", 0)
	first, second := h.sequence(), h.sequence()
	given := append(h.take(first, "a", 2), h.take(second, "a", 2)...)
	h.release(first)
	given = append(given, h.take(second, "a", 20)...)
	given = append(given, h.take(h.sequence(), "a", 2)...)
	h.compare(len(given), len(slices.Compact(slices.Sorted(slices.Values(given)))))
}

// TestLeadGoesAndComesBack: numbers rise although the lead goes to another operator and back, and what the first takes in after it lost the lead has
// numbers of its own.
func TestLeadGoesAndComesBack(t *testing.T) {
	for _, c := range []struct {
		name              string
		givesBack         bool // what is left, before the other leads; else the API server is away
		first, late, then int64
	}{
		{"nothing given back", false, 21, 41, 42},
		{"given back", true, 6, 26, 27},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(t)
			h.job("a", 0)
			a, b := h.sequence(), h.sequence()
			h.compare(from(1, 5), h.take(a, "a", 5))
			giveBack := a.Follow()
			if c.givesBack {
				if err := giveBack(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			h.compare(from(c.first, 5), h.take(b, "a", 5))
			h.compare(c.late, h.next(a, "a")) // a build that was on its way
			if err := giveBack(t.Context()); err != nil {
				t.Fatal(err)
			}
			h.compare(from(c.first+5, 3), h.take(b, "a", 3))
			b.Follow() // killed
			a.Lead()
			h.compare(from(c.then, 5), h.take(a, "a", 5))
		})
	}
}

// TestFollowWhileNumbering: builds that are numbered while the lead is lost have numbers of their own.
func TestFollowWhileNumbering(t *testing.T) {
	h := newHarness(t)
	h.job("a", 0)
	a, b := h.sequence(), h.sequence()
	given := h.atOnce(25, func() {
		for range 10 {
			if err := a.Release(t.Context()); err != nil {
				t.Error(err)
			}
			a.Lead()
		}
	}, a, a, b, b)
	h.compare(100, len(slices.Compact(given)))
}

// TestNumbersGoOnFromBuilds: a job whose status is lost, deleted and made again say, does not begin anew while builds of it exist.
func TestNumbersGoOnFromBuilds(t *testing.T) {
	h := newHarness(t)
	h.build("a", 7)
	h.build("a", 41)
	h.build("b", 90)
	h.job("a", 10)
	h.compare(int64(42), h.next(h.sequence(), "a"))
}

func TestJobGone(t *testing.T) {
	h := newHarness(t)
	h.build("a", 7)
	s := h.sequence()
	h.compare(from(8, 3), h.take(s, "a", 3))
	h.release(s)
}

func TestJobDeletedMeanwhile(t *testing.T) {
	h := newHarness(t)
	h.job("a", 0)
	s := h.sequence()
	numbers := h.take(s, "a", 5)
	if err := h.api.Delete(t.Context(), &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: h.namespace, Name: "a"}}); err != nil {
		t.Fatal(err)
	}
	numbers = append(numbers, h.take(s, "a", 20)...)
	h.job("a", 0)
	numbers = append(numbers, h.take(s, "a", 20)...)
	h.compare(from(1, 45), numbers)
	h.release(s)
}

func TestConcurrentNextIsUnique(t *testing.T) {
	h := newHarness(t)
	h.job("a", 0)
	h.job("b", 0)
	s := h.sequence()
	var (
		mu    sync.Mutex
		given = map[string][]int64{}
		group sync.WaitGroup
	)
	for i := range 8 {
		job := fmt.Sprintf("%c", 'a'+i%2)
		group.Go(func() {
			for range 10 {
				number, err := s.Next(t.Context(), h.key(job), job)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				given[job] = append(given[job], number)
				mu.Unlock()
			}
		})
	}
	group.Wait()
	for _, job := range []string{"a", "b"} {
		h.compare(from(1, 40), slices.Sorted(slices.Values(given[job])))
	}
}

// TestTwoOperatorsAtOnce: against the rule, but for a moment it happens. The resource version keeps their numbers apart.
func TestTwoOperatorsAtOnce(t *testing.T) {
	h := newHarness(t)
	h.job("a", 0)
	given := h.atOnce(50, func() {}, h.sequence(), h.sequence())
	h.compare(100, len(slices.Compact(given)))
}

// atOnce are the numbers of job a that the sequences give at the same time, each so many, while something is done beside it; sorted.
func (h *harness) atOnce(each int, beside func(), sequences ...*buildnumber.Sequence) (given []int64) {
	h.Helper()
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, sequence := range sequences {
		group.Go(func() {
			for range each {
				number, err := sequence.Next(h.Context(), h.key("a"), "a")
				if err != nil {
					h.Error(err)
					return
				}
				mu.Lock()
				given = append(given, number)
				mu.Unlock()
			}
		})
	}
	group.Go(beside)
	group.Wait()
	slices.Sort(given)
	return given
}
