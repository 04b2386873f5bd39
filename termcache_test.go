package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

// TestTermLeavesNothingBehind: what a term watches by the cache that all terms share is watched no more when it has ended.
func TestTermLeavesNothingBehind(t *testing.T) {
	access, namespaces := apiserver.Config(t), []string{apiserver.Namespace(t), apiserver.Namespace(t)}
	only := map[string]cache.Config{namespaces[0]: {}, namespaces[1]: {}}
	mgr, err := ctrl.NewManager(access, ctrl.Options{Metrics: noMetrics, Cache: cache.Options{DefaultNamespaces: only}})
	must(t, err)
	api, err := client.New(access, client.Options{})
	must(t, err)
	l := &leadership{manager: mgr}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	t.Cleanup(func() { cancel(); must(t, <-ended) })
	go func() { ended <- mgr.Start(ctx) }()

	var ofTerms, all atomic.Int64
	informer, err := mgr.GetCache().GetInformer(ctx, &corev1.ConfigMap{})
	must(t, err)
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: func(any) { all.Add(1) }})
	must(t, err)
	awaitMore := func(count *atomic.Int64, what string) {
		t.Helper()
		before, deadline := count.Load(), time.Now().Add(30*time.Second)
		for i := 0; count.Load() == before; i++ {
			if time.Now().After(deadline) {
				t.Fatalf("%s saw nothing", what)
			}
			object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "seen-", Namespace: namespaces[i%2]}}
			must(t, api.Create(ctx, object))
			time.Sleep(10 * time.Millisecond)
		}
	}
	for i := range 3 {
		term, err := l.newTerm()
		must(t, err)
		must(t, ctrl.NewControllerManagedBy(term).Named("term").
			For(&corev1.ConfigMap{}, builder.WithPredicates(predicate.NewPredicateFuncs(func(client.Object) bool { ofTerms.Add(1); return true }))).
			Complete(reconcile.Func(func(context.Context, reconcile.Request) (reconcile.Result, error) { return reconcile.Result{}, nil })))
		leads, end := context.WithCancel(ctx)
		over := make(chan error, 1)
		go func() { over <- term.Start(leads) }()
		awaitMore(&ofTerms, fmt.Sprintf("term %d", i))
		end()
		must(t, <-over)
	}
	before := ofTerms.Load()
	for range 10 {
		awaitMore(&all, "the cache")
	}
	if seen := ofTerms.Load() - before; seen > 1 { // which was on its way
		t.Errorf("terms that have ended saw %d events", seen)
	}
}
