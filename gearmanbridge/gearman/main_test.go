package gearman_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of the tests.
const patience = 15 * time.Second

// servers are the kinds of server every worker and client test runs against.
var servers = []struct {
	name  string
	geard bool
	start func(t testing.TB) (address string)
}{
	{"embedded gearmand", false, func(t testing.TB) string {
		address, _ := gearmantest.StartServer(t, gearman.Gearmand)
		return address
	}},
	{"embedded geard", true, func(t testing.TB) string {
		address, _ := gearmantest.StartServer(t, gearman.Geard)
		return address
	}},
	{"real gearmand", false, func(t testing.TB) string { return gearmantest.StartGearmand(t) }},
}

// onEveryServer runs the test once for each kind of server, on a fresh one.
func onEveryServer(t *testing.T, test func(t *testing.T, address string, geard bool)) {
	t.Helper()
	for _, server := range servers {
		t.Run(server.name, func(t *testing.T) {
			test(t, server.start(t), server.geard)
		})
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// workerHarness runs a worker and collects what its callbacks were told.
type workerHarness struct {
	*gearman.Worker
	jobs      chan *gearman.Job
	connected chan struct{}
	lost      chan error
	errors    chan string
	stop      func()
}

// startWorker runs a worker with short times until the test ends. change may
// set fields before it runs.
func startWorker(t testing.TB, address string, functions []string, change func(*gearman.Worker)) *workerHarness {
	t.Helper()
	h := &workerHarness{
		jobs:      make(chan *gearman.Job, 10000),
		connected: make(chan struct{}, 1000),
		lost:      make(chan error, 1000),
		errors:    make(chan string, 1000),
	}
	h.Worker = &gearman.Worker{
		Address:        address,
		ClientID:       "test-worker",
		Assigned:       func(job *gearman.Job) { h.jobs <- job },
		Connected:      func() { h.connected <- struct{}{} },
		Lost:           func(reason error) { h.lost <- reason },
		ServerError:    func(code, _ string) { h.errors <- code },
		Logger:         slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		ReconnectDelay: 50 * time.Millisecond,
	}
	if change != nil {
		change(h.Worker)
	}
	if err := h.SetFunctions(functions); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	stopped := false
	h.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(h.stop)
	return h
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// next receives from a channel of a harness within patience.
func next[T any](t testing.TB, what string, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(patience):
		t.Fatalf("no %s within %v", what, patience)
		panic("not reached")
	}
}

func dialClient(t testing.TB, address string) *gearman.Client {
	t.Helper()
	client, err := gearman.DialClient(testContext(t), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func dialAdmin(t testing.TB, address string) *gearman.Admin {
	t.Helper()
	admin, err := gearman.DialAdmin(testContext(t), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	return admin
}

func submit(t testing.TB, client *gearman.Client, function, unique, payload string) *gearman.Task {
	t.Helper()
	task, err := client.Submit(testContext(t), gearman.PriorityNormal, function, unique, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return task
}
