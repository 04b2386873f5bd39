package gearmanbridge

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// fullCache is the manager's cache with the builds in it, and no API server behind it.
func fullCache(b *testing.B, builds []v1alpha1.ZuulBuild) (client.Client, *capacity.Builds) {
	b.Helper()
	scheme := runtime.NewScheme()
	must(b, v1alpha1.AddToScheme(scheme))
	must(b, corev1.AddToScheme(scheme))
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(v1alpha1.GroupVersion.WithKind("ZuulBuild"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	wait := func(context.Context, metav1.ListOptions) (watch.Interface, error) { return watch.NewFake(), nil }
	objects, err := cache.New(&rest.Config{}, cache.Options{
		HTTPClient: http.DefaultClient, Scheme: scheme, Mapper: mapper,
		NewInformer: func(_ toolscache.ListerWatcher, object runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
			list := func(context.Context, metav1.ListOptions) (runtime.Object, error) {
				if _, pods := object.(*corev1.Pod); pods {
					return &corev1.PodList{}, nil
				}
				return &v1alpha1.ZuulBuildList{Items: builds}, nil
			}
			source := toolscache.ToListWatcherWithWatchListSemantics(
				&toolscache.ListWatch{ListWithContextFunc: list, WatchFuncWithContext: wait}, withoutWatchList{})
			return toolscache.NewSharedIndexInformer(source, object, resync, indexers)
		},
	})
	must(b, err)
	must(b, setupIndexes(b.Context(), objects))
	counted, err := capacity.Watch(b.Context(), objects)
	must(b, err)
	go func() { _ = objects.Start(b.Context()) }()
	if !objects.WaitForCacheSync(b.Context()) || !counted.WaitForSync(b.Context()) {
		b.Fatal("the cache is not filled")
	}
	cached, err := client.New(&rest.Config{}, client.Options{
		HTTPClient: http.DefaultClient, Scheme: scheme, Mapper: mapper, Cache: &client.CacheOptions{Reader: objects},
	})
	must(b, err)
	return cached, counted
}

// withoutWatchList says that the builds are listed, then watched.
type withoutWatchList struct{}

func (withoutWatchList) IsWatchListSemanticsUnSupported() bool { return true }

// manyBuilds of 1,000 jobs on 10 classes.
func manyBuilds(unfinished, complete int) []v1alpha1.ZuulBuild {
	builds := make([]v1alpha1.ZuulBuild, unfinished+complete)
	for i := range builds {
		job := fmt.Sprintf("job-%d", i%1000)
		builds[i] = v1alpha1.ZuulBuild{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: fmt.Sprintf("build-%d", i), ResourceVersion: "1", Labels: map[string]string{v1alpha1.LabelGearmanServer: "zuul"}},
			Spec: v1alpha1.ZuulBuildSpec{
				Job: job, JobRef: &v1alpha1.JobReference{Name: job}, Node: fmt.Sprintf("class-%d", i%10), Number: int64(i + 1),
			},
			Status: v1alpha1.ZuulBuildStatus{Phase: v1alpha1.PhaseRunning},
		}
		if i >= unfinished {
			builds[i].Status.Phase = v1alpha1.PhaseSucceeded
		}
	}
	return builds
}

// BenchmarkReserve is what each grab costs with 2,000 unfinished builds, as many assignments, and the builds of some days beside them: as it is, and
// where the unfinished builds are listed, which is how it was.
func BenchmarkReserve(b *testing.B) {
	objects, counted := fullCache(b, manyBuilds(2000, 20000))
	bridge := &Bridge{Client: objects, Builds: counted}
	l := capacity.Limits{All: 5000, Classes: map[string]int{}, Jobs: map[types.NamespacedName]int{}}
	for i := range 10 {
		l.Classes[fmt.Sprintf("class-%d", i)] = 500
	}
	for i := range 100 {
		l.Jobs[jobKey(fmt.Sprintf("job-%d", i))] = 500
	}
	for i := range 2000 {
		bridge.assignments.add(&assignment{
			key:    jobKey(fmt.Sprintf("build-%d", i)),
			target: target{key: jobKey(fmt.Sprintf("job-%d", i%1000)), class: fmt.Sprintf("class-%d", i%10)},
		})
	}
	for name, count := range map[string]func(*capacity.Limits) *capacity.Usage{"listed": bridge.listedUsage, "counted": bridge.usage} {
		b.Run(name, func(b *testing.B) {
			table := slots{count: count, limits: l}
			p := &pool{scope: capacity.Scope{Class: "class-1"}, worker: &gearman.Worker{}}
			got, want := table.count(&l).Of(capacity.Scope{Class: "class-1", Job: jobKey("job-1")}), capacity.Counts{All: 2000, Class: 200, Job: 2}
			if got != want {
				b.Fatalf("%+v, want %+v", got, want)
			}
			b.ReportAllocs()
			for b.Loop() {
				if !table.reserve(p) {
					b.Fatal("no room")
				}
				table.release(p)
			}
		})
	}
}

// listedUsage is what usage was before the builds were sorted as they come.
func (b *Bridge) listedUsage(l *capacity.Limits) *capacity.Usage {
	used := &capacity.Usage{}
	b.assignments.each(func(of target) { used.Add(l.Scope(of.key, of.class)) })
	builds := v1alpha1.ZuulBuildList{}
	if err := b.Client.List(context.Background(), &builds, client.MatchingFields{indexComplete: "false"}, client.UnsafeDisableDeepCopy); err != nil {
		panic(err)
	}
	for i := range builds.Items {
		if build := &builds.Items[i]; !b.assignments.has(client.ObjectKeyFromObject(build)) {
			used.Add(l.ScopeOf(build))
		}
	}
	return used
}

// BenchmarkFind is what each stop: and set_description: costs where 10,000 builds of the job are in the cache.
func BenchmarkFind(b *testing.B) {
	builds := manyBuilds(2000, 8000)
	for i := range builds {
		builds[i].Spec.Job, builds[i].Labels = "job", map[string]string{v1alpha1.LabelGearmanServer: "zuul"}
	}
	objects, _ := fullCache(b, builds)
	bridge := &Bridge{Client: objects}
	for i := 0; b.Loop(); i++ {
		number := int64(i%len(builds) + 1)
		build, err := bridge.find(b.Context(), buildReference{server: "zuul", job: "job", number: number})
		if err != nil || build == nil || build.Spec.Number != number {
			b.Fatalf("found %v, error %v", build, err)
		}
	}
}
