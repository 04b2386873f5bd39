package gearmanbridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog/buildlogtest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// Every test with a bridge checks that no line about a build lacks the keys of package buildlog. Those here have such lines written.

// awaitLine waits for a line about the build of a uuid, at info level or above.
func (f *fixture) awaitLine(uuid, message string) buildlogtest.Line {
	f.t.Helper()
	var found buildlogtest.Line
	gearmantest.Eventually(f.t, patience, fmt.Sprintf("a line %q about build %s", message, uuid), func() bool {
		lines := f.log.Of(uuid, slog.LevelInfo)
		at := slices.IndexFunc(lines, func(line buildlogtest.Line) bool { return line.Message() == message })
		if at >= 0 {
			found = lines[at]
		}
		return at >= 0
	})
	return found
}

// TestLogOfABuild: where nothing goes wrong, a build has a line when it was taken and one when it was reported.
func TestLogOfABuild(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	f := startBridge(t, address, nil)
	f.job("unit")
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	first := zuulclient.Request{Job: "unit", UUID: zuulclient.NewUUID()}
	request := submit(t, zuul, first)
	build := f.build(first.UUID)
	f.runs(build)
	f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
	awaitEnd(t, request)
	f.awaitLine(first.UUID, "Build reported")
	awaitEnd(t, submit(t, zuul, first)) // once more

	common := map[string]any{"level": "INFO", "gearmanServer": "zuul", "uuid": first.UUID, "job": "unit", "build": f.namespace + "/" + build.Name}
	line := func(message string, more map[string]any) map[string]any {
		more["msg"] = message
		for key, value := range common {
			more[key] = value
		}
		return more
	}
	reported := func() map[string]any {
		return line("Build reported", map[string]any{"phase": "Succeeded", "result": "SUCCESS"})
	}
	want := []map[string]any{
		line("Build taken", map[string]any{"request": "created", "number": 1.0, "class": ""}), reported(),
		line("Build taken", map[string]any{"request": "replayed", "number": 1.0, "class": ""}), reported(),
	}
	gearmantest.Eventually(t, patience, "the last line", func() bool { return len(f.log.Of(first.UUID, slog.LevelInfo)) >= len(want) })
	var got []map[string]any
	for _, line := range f.log.Of(first.UUID, slog.LevelInfo) {
		delete(line.Values, "time")
		got = append(got, line.Values)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// failingWrites is a client whose next writes of ZuulBuilds fail.
type failingWrites struct {
	client.Client
	mu       sync.Mutex
	failures map[string][]error // by create, patch and status
}

func (c *failingWrites) fail(write string, failures ...error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures[write] = append(c.failures[write], failures...)
}

func (c *failingWrites) next(write string, object client.Object) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, is := object.(*v1alpha1.ZuulBuild); !is || len(c.failures[write]) == 0 {
		return nil
	}
	failure := c.failures[write][0]
	c.failures[write] = c.failures[write][1:]
	return failure
}

func (c *failingWrites) Create(ctx context.Context, object client.Object, options ...client.CreateOption) error {
	if err := c.next("create", object); err != nil {
		return err
	}
	return c.Client.Create(ctx, object, options...)
}

func (c *failingWrites) Patch(ctx context.Context, object client.Object, patch client.Patch, options ...client.PatchOption) error {
	if err := c.next("patch", object); err != nil {
		return err
	}
	return c.Client.Patch(ctx, object, patch, options...)
}

func (c *failingWrites) Status() client.SubResourceWriter {
	return failingStatus{c.Client.Status(), c}
}

type failingStatus struct {
	client.SubResourceWriter
	client *failingWrites
}

func (s failingStatus) Patch(ctx context.Context, object client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
	if err := s.client.next("status", object); err != nil {
		return err
	}
	return s.SubResourceWriter.Patch(ctx, object, patch, options...)
}

// TestLogOfTroubles: whatever goes wrong with a build, the line that tells of it is found by its uuid, also where Zuul names it otherwise.
func TestLogOfTroubles(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	writes := &failingWrites{failures: map[string][]error{}}
	f := startBridge(t, address, func(bridge *Bridge) {
		often(bridge)
		writes.Client = bridge.Client
		bridge.Client = writes
	})
	f.job("unit")
	f.job("other")
	broken := errors.New("the network is down")
	zuul := dialZuul(t, address, zuulclient.Zuul2)

	writes.fail("create", broken)
	request := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	uuid := request.State().UUID
	f.awaitLine(uuid, "Cannot create the ZuulBuild; trying again")
	build := f.build(uuid)
	f.awaitSeen(build, "the build", func(*v1alpha1.ZuulBuild) bool { return true })

	again := dialZuul(t, address, zuulclient.Zuul2) // gearmand joins equal requests of equal functions only
	refused := submit(t, again, zuulclient.Request{Job: "other", UUID: uuid})
	awaitEnd(t, refused)
	if job := f.awaitLine(uuid, "Request refused").Values["job"]; job != "other" {
		t.Errorf("refused was a request for job %v", job)
	}

	writes.fail("status", broken, apierrors.NewBadRequest("no such description"))
	if answer := describe(t, zuul, describeArgument("unit", build.Spec.Number, "described")); answer != gearman.PacketWorkComplete {
		t.Errorf("answered with %v", answer)
	}
	f.awaitLine(uuid, "Reconciler error")
	f.awaitLine(uuid, "The description cannot be stored; it is left out")

	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.bridge.Drain(impatient); err == nil {
		t.Error("the drain is over though a build runs")
	}
	f.awaitLine(uuid, "Not yet reported")

	writes.fail("patch", broken)
	if _, err := request.Cancel(testContext(t)); err != nil {
		t.Fatal(err)
	}
	f.awaitLine(uuid, "The build could not be marked to stop; trying again")
	f.awaitBuild(uuid, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
}

// TestLogOfAnOrphan: its line says why it is one.
func TestLogOfAnOrphan(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	f := startBridge(t, address, often)
	f.job("unit")
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	request := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	must(t, zuul.Close())
	f.awaitAbandoned(request.State().UUID)
	line := f.awaitLine(request.State().UUID, "Nobody waits for the build any more; stopping it")
	if line.Values["cause"] != orphanCancelled.text() {
		t.Errorf("the cause is %v", line.Values["cause"])
	}
}
