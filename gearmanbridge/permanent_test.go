package gearmanbridge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

var zuulBuilds = schema.GroupResource{Group: "zuulbuild.dev", Resource: "zuulbuilds"}

// errNoRight is what an API server says that does not know the operator's rights yet, or knows that it has none.
var errNoRight = apierrors.NewForbidden(zuulBuilds, "", fmt.Errorf("%s",
	`User "system:serviceaccount:zuulbuild-system:zuulbuild" cannot create resource "zuulbuilds" in API group "zuulbuild.dev" in the namespace "ci"`))

func TestPermanent(t *testing.T) {
	forbidden := func(why string) error { return apierrors.NewForbidden(zuulBuilds, "b", errors.New(why)) }
	const limit = time.Minute
	cases := map[string]struct {
		err            error
		first, at, far bool // at first, at the limit, and long after it
	}{
		"a right that is missing":   {errNoRight, false, true, true},
		"wrapped":                   {fmt.Errorf("create: %w", errNoRight), false, true, true},
		"no number":                 {&unnumbered{errNoRight}, false, false, false},
		"a policy":                  {forbidden("a policy does not like it"), false, true, true},
		"an API server that starts": {forbidden("not yet ready to handle request"), false, true, true},
		"a full quota":              {forbidden("exceeded quota: q, requested: count/zuulbuilds.zuulbuild.dev=1"), false, false, false},
		"a quota nobody counted":    {forbidden("status unknown for quota: q, resources: count/zuulbuilds.zuulbuild.dev"), false, false, false},
		"no reason":                 {errors.New("connection refused"), false, false, false},
		"busy":                      {apierrors.NewServiceUnavailable("busy"), false, false, false},
		"the namespace is gone":     {apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "ci"), true, true, true},
		"invalid":                   {apierrors.NewInvalid(schema.GroupKind{Kind: "ZuulBuild"}, "b", nil), true, true, true},
		"bad request":               {apierrors.NewBadRequest("no"), true, true, true},
		"too large":                 {apierrors.NewRequestEntityTooLargeError("no"), true, true, true},
	}
	for name, c := range cases {
		for stayed, want := range map[time.Duration]bool{0: c.first, limit - 1: c.first, limit: c.at, 24 * time.Hour: c.far} {
			if got := permanent(c.err, stayed, limit); got != want {
				t.Errorf("%s, for %s: %t, want %t", name, stayed, got, want)
			}
		}
	}
}

func TestForbiddenSince(t *testing.T) {
	now, before := time.Unix(2000, 0), time.Unix(1000, 0)
	for name, c := range map[string]struct {
		before time.Time
		last   error
		want   time.Time
	}{
		"the first":            {time.Time{}, errNoRight, now},
		"another":              {before, errNoRight, before},
		"wrapped":              {before, fmt.Errorf("create: %w", errNoRight), before},
		"the API server left":  {before, errors.New("connection refused"), time.Time{}},
		"it went well":         {before, nil, time.Time{}},
		"it always has":        {time.Time{}, nil, time.Time{}},
		"no answer so far":     {time.Time{}, errors.New("connection refused"), time.Time{}},
		"another kind of fail": {before, apierrors.NewBadRequest("no"), time.Time{}},
	} {
		if got := forbiddenSince(c.before, c.last, now); !got.Equal(c.want) {
			t.Errorf("%s: since %v, want %v", name, got, c.want)
		}
	}
}

// forbidding is an API server that forbids builds, and what is written into their status, so many times.
type forbidding struct {
	client.Client
	left *atomic.Int64
}

func forbids(bridge *Bridge, times int64) {
	left := &atomic.Int64{}
	left.Store(times)
	bridge.Client = forbidding{bridge.Client, left}
}

func (c forbidding) answer(object client.Object) error {
	if _, is := object.(*v1alpha1.ZuulBuild); is && c.left.Add(-1) >= 0 {
		return errNoRight
	}
	return nil
}

func (c forbidding) Create(ctx context.Context, object client.Object, options ...client.CreateOption) error {
	if err := c.answer(object); err != nil {
		return err
	}
	return c.Client.Create(ctx, object, options...)
}

func (c forbidding) Status() client.SubResourceWriter { return forbiddingWriter{c.Client.Status(), c} }

type forbiddingWriter struct {
	client.SubResourceWriter
	api forbidding
}

func (w forbiddingWriter) Patch(ctx context.Context, object client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
	if err := w.api.answer(object); err != nil {
		return err
	}
	return w.SubResourceWriter.Patch(ctx, object, patch, options...)
}

// TestForbiddenForMoments: an API server that starts anew forbids what it will allow. Jobs must not be refused for that.
func TestForbiddenForMoments(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	f := startBridge(t, address, func(bridge *Bridge) { forbids(bridge, 3) })
	f.job("unit")
	request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
	if state := awaitStart(t, request); state.Result != "" || len(f.builds()) != 1 {
		t.Errorf("result %q, %d builds", state.Result, len(f.builds()))
	}
}

// TestForbiddenForGood: a job is refused in the end, with the API server's words, because Zuul would ask for ever without a result.
func TestForbiddenForGood(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	const limit = time.Second
	f := startBridge(t, address, func(bridge *Bridge) {
		forbids(bridge, 1<<32)
		bridge.forbiddenFor = limit
	})
	f.job("unit")
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	f.awaitRegistered("unit", reasonRegistered)
	begun := time.Now()
	state := awaitEnd(t, submit(t, zuul, zuulclient.Request{Job: "unit"}))
	if took := time.Since(begun); took < limit {
		t.Errorf("refused after %s", took)
	}
	if message, _ := state.Worker.Extra["message"].(string); state.Result != resultInvalidRequest || !strings.Contains(message, `cannot create resource "zuulbuilds"`) {
		t.Errorf("result %q, message %q", state.Result, message)
	}
}

// TestDescriptionForbiddenForMoments: a description is not dropped for that either.
func TestDescriptionForbiddenForMoments(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	left := &atomic.Int64{}
	f := startBridge(t, address, func(bridge *Bridge) { bridge.Client = forbidding{bridge.Client, left} })
	f.job("unit")
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	zuul.Settling = patiently
	must(t, zuul.AwaitRegistered(testContext(t), "set_description:"+testManager))
	request := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	left.Store(2)
	_, err := request.Describe(testContext(t), "described")
	must(t, err)
	f.awaitBuild(request.State().UUID, "described", described("described"))
}
