package buildnumber_test

import (
	"slices"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

// newHarnesses are for two namespaces of one operator, which either may give.
func newHarnesses(t *testing.T) (here, there *harness) {
	t.Helper()
	here = newHarness(t)
	here.elsewhere = apiserver.Namespace(t)
	other := *here
	other.namespace, other.elsewhere = here.elsewhere, here.namespace
	return here, &other
}

// TestNumbersGoOnInAnotherNamespace: Zuul names a build by the name of its job and its number, and knows no namespaces.
func TestNumbersGoOnInAnotherNamespace(t *testing.T) {
	// Who may make builds in one namespace shall not use up the numbers of another.
	const most, mostElsewhere = 1<<53 - 1, 1<<53 - 1 - 1_000_000_000
	for name, c := range map[string]struct {
		there []int64 // numbers of the builds in the other namespace
		first int64   // firstBuildNumber
		want  int64
	}{
		"moved":                {[]int64{7, 41}, 0, 42},
		"moved with a start":   {[]int64{7, 41}, 100, 100},
		"higher than may be":   {[]int64{7, most}, 0, 8},
		"just too high":        {[]int64{mostElsewhere + 1}, 0, 1},
		"as high as may be":    {[]int64{mostElsewhere}, 0, mostElsewhere + 1},
		"other jobs elsewhere": {nil, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			here, there := newHarnesses(t)
			for _, number := range c.there {
				there.build("a", number)
			}
			there.build("b", 90)
			here.job("a", c.first)
			here.compare(from(c.want, 2), here.take(here.sequence(), "a", 2))
		})
	}
}

// TestOneNameInTwoNamespaces: where two ZuulJobs have one Gearman name, only one is registered, but which may change, and a person may have builds of the
// other. Numbers rise over both.
func TestOneNameInTwoNamespaces(t *testing.T) {
	here, there := newHarnesses(t)
	here.job("a", 0)
	there.job("a", 0)
	s := here.sequence()
	given := here.take(s, "a", 5)
	for range 15 {
		given = append(given, there.take(s, "a", 2)...)
		given = append(given, here.take(s, "a", 1)...)
	}
	if err := here.api.Delete(t.Context(), &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: here.namespace, Name: "a"}}); err != nil {
		t.Fatal(err)
	}
	given = append(given, there.take(s, "a", 30)...)
	here.job("a", 0)
	given = append(given, here.take(s, "a", 30)...)
	if !slices.IsSorted(given) || len(slices.Compact(slices.Clone(given))) != len(given) {
		t.Errorf("numbers do not rise: %d", given)
	}
	here.release(s)
}

// TestNumbersTooHighForOthers: a job that has come to the end of all numbers does not take those of its name elsewhere along.
func TestNumbersTooHighForOthers(t *testing.T) {
	here, there := newHarnesses(t)
	here.job("a", 0)
	there.job("a", 0)
	there.build("a", 1<<53-1)
	s := here.sequence()
	here.compare(int64(1), here.next(s, "a"))
	there.compare(int64(1<<53), there.next(s, "a")) // which the API server will not have
	here.compare(int64(2), here.next(s, "a"))
}

func TestTwoNamespacesAtOnce(t *testing.T) {
	here, there := newHarnesses(t)
	here.job("a", 0)
	there.job("a", 0)
	s := here.sequence()
	var mu sync.Mutex
	var given []int64
	var group sync.WaitGroup
	for _, h := range []*harness{here, there, here, there} {
		group.Go(func() {
			for range 30 {
				number, err := s.Next(t.Context(), h.key("a"), "a")
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				given = append(given, number)
				mu.Unlock()
			}
		})
	}
	group.Wait()
	slices.Sort(given)
	here.compare(120, len(slices.Compact(given)))
}
