package controllers

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
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	clientgoscheme "k8s.io/client-go/kubernetes/scheme"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// keptBuilds of jobs of which each has as many that succeeded in the last days.
func keptBuilds(jobs, each int) []v1alpha1.ZuulBuild {
	now := time.Now()
	builds := make([]v1alpha1.ZuulBuild, 0, jobs*each)
	for i := range jobs * each {
		completed := metav1.NewTime(now.Add(-time.Duration(i) * time.Second))
		builds = append(builds, v1alpha1.ZuulBuild{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: fmt.Sprintf("build-%d", i), UID: types.UID(fmt.Sprint(i)), ResourceVersion: "1"},
			Spec: v1alpha1.ZuulBuildSpec{
				Job: fmt.Sprintf("job-%d", i%jobs), JobRef: &v1alpha1.JobReference{Name: fmt.Sprintf("job-%d", i%jobs)}, Number: int64(i + 1),
				Parameters: map[string]string{"ZUUL_BRANCH": fmt.Sprintf("branch-%d", i%7)},
			},
			Status: v1alpha1.ZuulBuildStatus{
				Phase: v1alpha1.PhaseSucceeded, Result: ResultSuccess, CompletionTime: &completed,
				StartTime: ptr.To(metav1.NewTime(completed.Add(-time.Minute))),
			},
		})
	}
	return builds
}

// onFullCache is a reconciler whose cache has the builds in it and nothing else, and that has no API server.
func onFullCache(b *testing.B, builds []v1alpha1.ZuulBuild) *ZuulBuildReconciler {
	b.Helper()
	scheme := runtime.NewScheme()
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, err := range []error{v1alpha1.AddToScheme(scheme), clientgoscheme.AddToScheme(scheme)} {
		if err != nil {
			b.Fatal(err)
		}
	}
	mapper.Add(v1alpha1.GroupVersion.WithKind("ZuulBuild"), meta.RESTScopeNamespace)
	mapper.Add(v1alpha1.GroupVersion.WithKind("ZuulJob"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	objects, err := cache.New(&rest.Config{}, cache.Options{
		HTTPClient: http.DefaultClient, Scheme: scheme, Mapper: mapper,
		NewInformer: func(_ toolscache.ListerWatcher, object runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
			list := func(context.Context, metav1.ListOptions) (runtime.Object, error) {
				if _, ok := object.(*v1alpha1.ZuulBuild); ok {
					return &v1alpha1.ZuulBuildList{Items: builds}, nil
				}
				limit := &v1alpha1.RetentionLimit{Count: ptr.To[int32](100000)}
				return &v1alpha1.ZuulJobList{Items: []v1alpha1.ZuulJob{{
					ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: "job-0", ResourceVersion: "1"},
					Spec:       v1alpha1.ZuulJobSpec{Retention: &v1alpha1.Retention{Successes: limit, Failures: limit}},
				}}}, nil
			}
			wait := func(context.Context, metav1.ListOptions) (watch.Interface, error) { return watch.NewFake(), nil }
			source := toolscache.ToListWatcherWithWatchListSemantics(
				&toolscache.ListWatch{ListWithContextFunc: list, WatchFuncWithContext: wait}, withoutWatchList{})
			return toolscache.NewSharedIndexInformer(source, object, resync, indexers)
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := SetupIndexes(b.Context(), objects); err != nil {
		b.Fatal(err)
	}
	go func() { _ = objects.Start(b.Context()) }()
	if !objects.WaitForCacheSync(b.Context()) {
		b.Fatal("the cache is not filled")
	}
	cached, err := client.New(&rest.Config{}, client.Options{
		HTTPClient: http.DefaultClient, Scheme: scheme, Mapper: mapper, Cache: &client.CacheOptions{Reader: objects},
	})
	if err != nil {
		b.Fatal(err)
	}
	return &ZuulBuildReconciler{Client: cached, Clock: fastClock{}, Metrics: newMetrics(false, nil)}
}

// withoutWatchList says that the objects are listed, then watched.
type withoutWatchList struct{}

func (withoutWatchList) IsWatchListSemanticsUnSupported() bool { return true }

// BenchmarkFinished is what one look at the finished builds of a job costs, beside 100,000 of others. There is at most one in gatherFor.
func BenchmarkFinished(b *testing.B) {
	for _, each := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprintf("%d-kept", each), func(b *testing.B) {
			reconciler := &finishedReconciler{onFullCache(b, keptBuilds(100000/each, each))}
			request := ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "ci", Name: "job-0"}}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := reconciler.Reconcile(b.Context(), request); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReconcileFinished is what one round of a build that has ended costs, however many others are kept.
func BenchmarkReconcileFinished(b *testing.B) {
	for _, count := range []int{100, 100000} {
		b.Run(fmt.Sprintf("%d-kept", count), func(b *testing.B) {
			reconciler := onFullCache(b, keptBuilds(1, count))
			request := ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "ci", Name: "build-7"}}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := reconciler.Reconcile(b.Context(), request); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
