package gearman_test

import (
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestJobFromSubmitToComplete(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, _ bool) {
		worker := startWorker(t, address, []string{"build:a"}, nil)
		client := dialClient(t, address)
		task := submit(t, client, "build:a", "unique-1", "before\x00after\x00")

		job := next(t, "job", worker.jobs)
		if job.Function != "build:a" || job.Unique != "unique-1" || string(job.Payload) != "before\x00after\x00" {
			t.Errorf("got job %q, unique %q, payload %q", job.Function, job.Unique, job.Payload)
		}
		must(t, job.Data([]byte("start\x00\xff")))
		must(t, job.Status(5, 1000))
		status, err := job.Query(testContext(t))
		must(t, err)
		if want := (gearman.JobStatus{Known: true, Running: true, Numerator: 5, Denominator: 1000}); status != want {
			t.Errorf("Query: got %+v, want %+v", status, want)
		}
		status, err = client.Status(testContext(t), task.Handle)
		must(t, err)
		if !status.Running || status.Denominator != 1000 {
			t.Errorf("Status: got %+v", status)
		}
		must(t, job.Complete(nil))
		if err := job.Complete(nil); !errors.Is(err, gearman.ErrFinished) {
			t.Errorf("second Complete: got %v, want ErrFinished", err)
		}
		<-job.Done()

		want := []gearman.Event{
			{Type: gearman.PacketWorkData, Data: []byte("start\x00\xff")},
			{Type: gearman.PacketWorkStatus, Numerator: 5, Denominator: 1000},
			{Type: gearman.PacketWorkComplete, Data: []byte{}},
		}
		if diff := cmp.Diff(want, events(t, task)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		status, err = client.Status(testContext(t), task.Handle)
		must(t, err)
		if status.Known {
			t.Errorf("after the end: got %+v, want unknown", status)
		}
	})
}

// events takes all events of a task to its end.
func events(t testing.TB, task *gearman.Task) []gearman.Event {
	t.Helper()
	var all []gearman.Event
	for {
		event, err := task.Next(testContext(t))
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		all = append(all, event)
	}
}

func TestJobFails(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, _ bool) {
		worker := startWorker(t, address, []string{"f"}, nil)
		task := submit(t, dialClient(t, address), "f", "", "")
		must(t, next(t, "job", worker.jobs).Fail())
		event, err := task.Wait(testContext(t))
		must(t, err)
		if event.Type != gearman.PacketWorkFail {
			t.Errorf("got %v, want WORK_FAIL", event.Type)
		}
	})
}
