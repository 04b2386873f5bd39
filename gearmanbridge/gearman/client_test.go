package gearman_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

func dialMock(t *testing.T) (*gearman.Client, *mockServer) {
	t.Helper()
	server := newMockServer(t)
	client := dialClient(t, server.address())
	server.accept()
	return client, server
}

func TestClientBytes(t *testing.T) {
	client, server := dialMock(t)
	type result struct {
		task *gearman.Task
		err  error
	}
	results := make(chan result, 1)
	var ended []*gearman.Task
	submit := func(priority gearman.Priority) {
		ctx := testContext(t)
		go func() {
			task, err := client.Submit(ctx, priority, "f", "u", []byte("a\x00b"))
			results <- result{task, err}
		}()
	}
	for priority, packetType := range map[gearman.Priority]string{
		gearman.PriorityNormal: "\x07", gearman.PriorityHigh: "\x15", gearman.PriorityLow: "\x21",
	} {
		submit(priority)
		server.expect("\x00REQ\x00\x00\x00" + packetType + "\x00\x00\x00\x07f\x00u\x00a\x00b")
		// The first event may come with the answer.
		server.send("\x00RES\x00\x00\x00\x08\x00\x00\x00\x03H:1" + "\x00RES\x00\x00\x00\x1c\x00\x00\x00\x05H:1\x00d" +
			"\x00RES\x00\x00\x00\x1d\x00\x00\x00\x05H:1\x00w" + "\x00RES\x00\x00\x00\x0c\x00\x00\x00\x09H:1\x005\x00100" +
			"\x00REQ\x00\x00\x00\x0e\x00\x00\x00\x03H:1") // geard's WORK_FAIL for a lost worker
		got := next(t, "task", results)
		must(t, got.err)
		want := []gearman.Event{
			{Type: gearman.PacketWorkData, Data: []byte("d")},
			{Type: gearman.PacketWorkWarning, Data: []byte("w")},
			{Type: gearman.PacketWorkStatus, Numerator: 5, Denominator: 100},
			{Type: gearman.PacketWorkFail},
		}
		if diff := cmp.Diff(want, events(t, got.task)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if got.task.Handle != "H:1" {
			t.Errorf("handle %q", got.task.Handle)
		}
		ended = append(ended, got.task)
	}
	for _, task := range ended {
		if event, err := task.Next(testContext(t)); !errors.Is(err, io.EOF) {
			t.Errorf("after its end a task got %v of a later one with its handle", event)
		}
	}

	submit(gearman.PriorityNormal)
	server.expect("\x00REQ\x00\x00\x00\x07\x00\x00\x00\x07f\x00u\x00a\x00b")
	server.send("\x00RES\x00\x00\x00\x13\x00\x00\x00\x08CODE\x00why")
	var refused *gearman.ServerError
	if got := next(t, "refusal", results); !errors.As(got.err, &refused) || *refused != (gearman.ServerError{Code: "CODE", Text: "why"}) {
		t.Errorf("got %v", got.err)
	}
}

func TestSubmitRefused(t *testing.T) {
	client := dialClient(t, gearmantest.StartGearmand(t))
	var refused *gearman.ServerError
	_, err := client.Submit(testContext(t), gearman.PriorityNormal, "f", strings.Repeat("u", 65), nil)
	if !errors.As(err, &refused) || refused.Code != "ARGUMENT_TOO_LARGE" {
		t.Errorf("got %v", err)
	}
	submit(t, client, "f", "u", "") // the connection goes on
	if _, err := client.Submit(testContext(t), gearman.PriorityNormal, "f\x00g", "", nil); err == nil {
		t.Error("a function with a NUL was submitted")
	}
	if _, err := client.Status(testContext(t), strings.Repeat("h", 64)); err == nil {
		t.Error("asked for a handle gearmand does not answer for")
	}
}

func TestLostConnectionEndsEveryCall(t *testing.T) {
	client, server := dialMock(t)
	ctx := testContext(t)
	errs := make(chan error, 3)
	go func() {
		task, err := client.Submit(ctx, gearman.PriorityNormal, "f", "", nil)
		if err != nil {
			errs <- err
			return
		}
		_, err = task.Wait(ctx)
		errs <- err
	}()
	server.expect("\x00REQ\x00\x00\x00\x07\x00\x00\x00\x03f\x00\x00")
	server.send("\x00RES\x00\x00\x00\x08\x00\x00\x00\x03H:1")
	go func() { _, err := client.Submit(ctx, gearman.PriorityNormal, "f", "", nil); errs <- err }()
	server.expect("\x00REQ\x00\x00\x00\x07\x00\x00\x00\x03f\x00\x00")
	go func() { _, err := client.Status(ctx, "H:1"); errs <- err }()
	server.expect("\x00REQ\x00\x00\x00\x0f\x00\x00\x00\x03H:1")
	server.hangUp()
	for range 3 {
		if err := next(t, "error", errs); !errors.Is(err, gearman.ErrConnectionLost) {
			t.Errorf("got %v, want ErrConnectionLost", err)
		}
	}
	next(t, "end", client.Done())
	if _, err := client.Submit(ctx, gearman.PriorityNormal, "f", "", nil); !errors.Is(err, gearman.ErrConnectionLost) {
		t.Errorf("afterwards: got %v, want ErrConnectionLost", err)
	}
}

func TestClientCallsEndWithTheirContext(t *testing.T) {
	client, server := dialMock(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := client.Submit(ctx, gearman.PriorityNormal, "f", "", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Submit: got %v", err)
	}
	if _, err := client.Status(ctx, "H:1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Status: got %v", err)
	}
	// Their late answers do not disturb the calls after them.
	server.expect("\x00REQ\x00\x00\x00\x07\x00\x00\x00\x03f\x00\x00" + "\x00REQ\x00\x00\x00\x0f\x00\x00\x00\x03H:1")
	statuses := make(chan gearman.JobStatus, 1)
	patient := testContext(t)
	go func() { status, _ := client.Status(patient, "H:1"); statuses <- status }()
	server.expect("\x00REQ\x00\x00\x00\x0f\x00\x00\x00\x03H:1")
	server.send("\x00RES\x00\x00\x00\x08\x00\x00\x00\x03H:1" + "\x00RES\x00\x00\x00\x14\x00\x00\x00\x0bH:1\x000\x000\x000\x000")
	server.send("\x00RES\x00\x00\x00\x14\x00\x00\x00\x0bH:1\x001\x001\x005\x009")
	if got := next(t, "status", statuses); got != (gearman.JobStatus{Known: true, Running: true, Numerator: 5, Denominator: 9}) {
		t.Errorf("got %+v", got)
	}
}

// gearmand gives equal jobs one handle.
func TestEqualJobsShareTheirEvents(t *testing.T) {
	for name, address := range map[string]string{
		"real": gearmantest.StartGearmand(t), "embedded": func() string { a, _ := gearmantest.StartServer(t, gearman.Gearmand); return a }(),
	} {
		t.Run(name, func(t *testing.T) {
			one, two := submit(t, dialClient(t, address), "f", "u", "1"), submit(t, dialClient(t, address), "f", "u", "2")
			if one.Handle != two.Handle {
				t.Fatalf("handles %s and %s", one.Handle, two.Handle)
			}
			worker := startWorker(t, address, []string{"f"}, nil)
			must(t, next(t, "job", worker.jobs).Complete([]byte("done")))
			for _, task := range []*gearman.Task{one, two} {
				event, err := task.Wait(testContext(t))
				if err != nil || string(event.Data) != "done" {
					t.Errorf("got %v, %v", event, err)
				}
				if _, err := task.Next(testContext(t)); !errors.Is(err, io.EOF) {
					t.Errorf("after the end: %v", err)
				}
			}
		})
	}
}
