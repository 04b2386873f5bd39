package gearman_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// What goes over the wire, byte for byte.
const (
	bytesSetClientID = "\x00REQ\x00\x00\x00\x16\x00\x00\x00\x0btest-worker"
	bytesCanDoF      = "\x00REQ\x00\x00\x00\x01\x00\x00\x00\x01f"
	bytesCanDoG      = "\x00REQ\x00\x00\x00\x01\x00\x00\x00\x01g"
	bytesCantDoF     = "\x00REQ\x00\x00\x00\x02\x00\x00\x00\x01f"
	bytesGrab        = "\x00REQ\x00\x00\x00\x1e\x00\x00\x00\x00"
	bytesPreSleep    = "\x00REQ\x00\x00\x00\x04\x00\x00\x00\x00"
	bytesNoop        = "\x00RES\x00\x00\x00\x06\x00\x00\x00\x00"
	bytesNoJob       = "\x00RES\x00\x00\x00\x0a\x00\x00\x00\x00"
	bytesAssignH1    = "\x00RES\x00\x00\x00\x1f\x00\x00\x00\x0eH:1\x00f\x00uuid\x00x\x00y"
	bytesCompleteH1  = "\x00REQ\x00\x00\x00\x0d\x00\x00\x00\x04H:1\x00"
	bytesFailH1      = "\x00REQ\x00\x00\x00\x0e\x00\x00\x00\x03H:1"
)

func TestWorkerBytes(t *testing.T) {
	server := newMockServer(t)
	worker := startWorker(t, server.address(), []string{"f"}, nil)
	server.accept()
	server.expect(bytesSetClientID + bytesCanDoF + bytesGrab)
	next(t, "connection", worker.connected)

	server.send(bytesNoJob)
	server.expect(bytesPreSleep)
	server.send(bytesNoop)
	server.expect(bytesGrab)
	server.send(bytesNoop) // between grab and answer
	server.send(bytesAssignH1)
	server.expect(bytesGrab)
	server.send(bytesNoJob)
	server.expect(bytesPreSleep)

	job := next(t, "job", worker.jobs)
	if job.Function != "f" || job.Unique != "uuid" || string(job.Payload) != "x\x00y" || job.Handle() != "H:1" {
		t.Errorf("got %q %q %q %q", job.Function, job.Unique, job.Payload, job.Handle())
	}
	must(t, job.Data(nil))
	server.expect("\x00REQ\x00\x00\x00\x1c\x00\x00\x00\x04H:1\x00")
	must(t, job.Data([]byte("a\x00b")))
	server.expect("\x00REQ\x00\x00\x00\x1c\x00\x00\x00\x07H:1\x00a\x00b")
	must(t, job.Status(-1, 9_999_999_999))
	server.expect("\x00REQ\x00\x00\x00\x0c\x00\x00\x00\x11H:1\x00-1\x009999999999")
	if err := job.Status(0, 10_000_000_000); err == nil {
		t.Error("a WORK_STATUS of 11 digits was sent")
	}
	must(t, job.Complete(nil))
	server.expect(bytesCompleteH1)

	for name, send := range map[string]func() error{
		"Data":     func() error { return job.Data(nil) },
		"Status":   func() error { return job.Status(1, 2) },
		"Complete": func() error { return job.Complete(nil) },
		"Fail":     job.Fail,
		"Query":    func() error { _, err := job.Query(testContext(t)); return err },
	} {
		if err := send(); !errors.Is(err, gearman.ErrFinished) {
			t.Errorf("%s after the end: got %v, want ErrFinished", name, err)
		}
	}
	server.expectSilence(50 * time.Millisecond)
}

func TestWorkerRemovesFunctionOnlyWithoutJobs(t *testing.T) {
	server := newMockServer(t)
	worker := startWorker(t, server.address(), []string{"f"}, nil)
	server.accept()
	server.expect(bytesSetClientID + bytesCanDoF + bytesGrab)
	next(t, "connection", worker.connected)
	must(t, worker.SetFunctions([]string{"g"}))
	server.expect(bytesCanDoG)
	server.send(bytesAssignH1)
	server.expect(bytesGrab)
	server.send(bytesNoJob)
	server.expect(bytesPreSleep)
	server.expectSilence(50 * time.Millisecond)
	must(t, next(t, "job", worker.jobs).Fail())
	server.expect(bytesFailH1 + bytesCantDoF)
}

// A handle is dead on any connection but its own, even if the same server
// gives the same handle again.
func TestHandleDiesWithItsConnection(t *testing.T) {
	server := newMockServer(t)
	worker := startWorker(t, server.address(), []string{"f"}, nil)
	register := bytesSetClientID + bytesCanDoF + bytesGrab
	server.accept()
	server.expect(register)
	server.send(bytesAssignH1)
	server.expect(bytesGrab)
	old := next(t, "job", worker.jobs)
	server.hangUp()

	_ = next(t, "loss", worker.lost)
	select {
	case <-old.Done():
	default:
		t.Error("Lost was called before the job was done")
	}
	server.accept()
	server.expect(register)
	server.send(bytesAssignH1)
	server.expect(bytesGrab)
	job := next(t, "job again", worker.jobs)

	for name, send := range map[string]func() error{
		"Data":     func() error { return old.Data(nil) },
		"Status":   func() error { return old.Status(1, 2) },
		"Complete": func() error { return old.Complete(nil) },
		"Fail":     old.Fail,
		"Query":    func() error { _, err := old.Query(testContext(t)); return err },
		"Err":      old.Err,
	} {
		if err := send(); !errors.Is(err, gearman.ErrHandleLost) {
			t.Errorf("%s: got %v, want ErrHandleLost", name, err)
		}
	}
	server.expectSilence(50 * time.Millisecond)
	must(t, job.Fail())
	server.expect(bytesFailH1)
}

func TestSameHandleTwiceOnOneConnection(t *testing.T) {
	server := newMockServer(t)
	var log bytes.Buffer // no line comes after that of the second job
	worker := startWorker(t, server.address(), []string{"f"}, func(w *gearman.Worker) {
		w.Logger = slog.New(slog.NewTextHandler(&log, nil))
		assigned := w.Assigned
		w.Assigned = func(job *gearman.Job) {
			job.LogValues = []any{"build", "one"}
			assigned(job)
		}
	})
	server.accept()
	server.expect(bytesSetClientID + bytesCanDoF + bytesGrab)
	server.send(bytesAssignH1)
	server.expect(bytesGrab)
	server.send(bytesAssignH1)
	server.expect(bytesGrab)
	first, second := next(t, "job", worker.jobs), next(t, "job", worker.jobs)
	if err := first.Complete(nil); !errors.Is(err, gearman.ErrHandleLost) {
		t.Errorf("first: got %v, want ErrHandleLost", err)
	}
	if want := "a job is lost: the Gearman server gave its handle to another one\" build=one"; !strings.Contains(log.String(), want) {
		t.Errorf("the log has no line with %q:\n%s", want, &log)
	}
	must(t, second.Complete(nil))
	server.expect(bytesCompleteH1)
}

func TestFullWorkerIsSilent(t *testing.T) {
	server := newMockServer(t)
	var free atomic.Bool
	free.Store(true)
	worker := startWorker(t, server.address(), []string{"f"}, func(w *gearman.Worker) {
		assigned := w.Assigned
		w.Assigned = func(job *gearman.Job) { free.Store(false); assigned(job) }
		w.Free = free.Load
	})
	server.accept()
	server.expect(bytesSetClientID + bytesCanDoF + bytesGrab)
	server.send(bytesAssignH1)
	next(t, "job", worker.jobs)
	server.send(bytesNoop)
	server.expectSilence(50 * time.Millisecond)
	free.Store(true)
	worker.Wake()
	server.expect(bytesGrab)
}

// TestReservation: a slot is reserved before each grab, and given back when the
// grab brings nothing: also when its connection is lost or the worker drains.
func TestReservation(t *testing.T) {
	server := newMockServer(t)
	var reserved atomic.Bool
	released := make(chan struct{}, 100)
	worker := startWorker(t, server.address(), []string{"f"}, func(w *gearman.Worker) {
		w.Free = func() bool { return true }
		w.Reserve = func() bool { reserved.Store(true); return true }
		w.Release = func() { reserved.Store(false); released <- struct{}{} }
	})
	server.accept()
	server.expect(bytesSetClientID + bytesCanDoF + bytesGrab)
	if !reserved.Load() {
		t.Error("a grab without a slot")
	}
	server.send(bytesNoJob)
	server.expect(bytesPreSleep)
	if len(released) != 1 {
		t.Errorf("%d releases after NO_JOB", len(released))
	}
	server.send(bytesNoop)
	server.expect(bytesGrab)
	server.hangUp()
	next(t, "release with the end of the connection", released)
	next(t, "release with the end of the connection", released)
	server.accept()
	server.expect(bytesSetClientID + bytesCanDoF + bytesGrab)
	worker.Drain()
	server.send(bytesNoJob)
	next(t, "release after the last grab", released)
	<-worker.Drained()
	if reserved.Load() {
		t.Error("a drained worker keeps a slot")
	}
}

func TestWorkerWithoutSlotIsSilent(t *testing.T) {
	server := newMockServer(t)
	var allowed atomic.Bool
	worker := startWorker(t, server.address(), []string{"f"}, func(w *gearman.Worker) { w.Reserve = allowed.Load })
	server.accept()
	server.expect(bytesSetClientID + bytesCanDoF)
	server.send(bytesNoop)
	server.expectSilence(50 * time.Millisecond)
	allowed.Store(true)
	worker.Wake()
	server.expect(bytesGrab)
}

func TestErrorPacketIsReportedAndNotFatal(t *testing.T) {
	server := newMockServer(t)
	worker := startWorker(t, server.address(), []string{"f"}, nil)
	server.accept()
	server.expect(bytesSetClientID + bytesCanDoF + bytesGrab)
	server.send("\x00RES\x00\x00\x00\x13\x00\x00\x00\x12JOB_NOT_FOUND\x00gone")
	if code := next(t, "error", worker.errors); code != "JOB_NOT_FOUND" {
		t.Errorf("got %q", code)
	}
	server.send("\x00RES\x00\x00\x00\x11\x00\x00\x00\x02hi") // a packet that makes no sense here
	server.send(bytesNoJob)
	server.expect(bytesPreSleep)
}

func TestWorkerHangsUpOnGarbage(t *testing.T) {
	for name, garbage := range map[string]string{
		"text":       "HTTP/1.1 400 Bad Request\r\n",
		"huge":       "\x00RES\x00\x00\x00\x1f\x00\x10\x00\x00",
		"short args": "\x00RES\x00\x00\x00\x1f\x00\x00\x00\x03H:1",
	} {
		t.Run(name, func(t *testing.T) {
			server := newMockServer(t)
			worker := startWorker(t, server.address(), []string{"f"}, func(w *gearman.Worker) { w.MaxPacketSize = 1 << 16 })
			server.accept()
			server.expect(bytesSetClientID + bytesCanDoF + bytesGrab)
			server.send(garbage)
			if err := next(t, "loss", worker.lost); !errors.Is(err, gearman.ErrProtocol) {
				t.Errorf("got %v, want ErrProtocol", err)
			}
			server.expectEnd()
		})
	}
}

func TestPing(t *testing.T) {
	server := newMockServer(t)
	const interval, timeout = 400 * time.Millisecond, time.Second
	worker := startWorker(t, server.address(), nil, func(w *gearman.Worker) {
		w.PingInterval, w.PingTimeout = interval, timeout // an answered ping grants the whole interval
	})
	server.accept()
	server.expect(bytesSetClientID)
	answer := "\x00RES\x00\x00\x00\x14\x00\x00\x00\x15worker-ping:%\x000\x000\x000\x000"
	for _, number := range []string{"1", "2", "3"} {
		server.expect("\x00REQ\x00\x00\x00\x0f\x00\x00\x00\x0dworker-ping:" + number)
		server.send(strings.Replace(answer, "%", number, 1))
	}
	begun := time.Now()
	err := next(t, "loss", worker.lost)
	if mute := time.Since(begun); mute < interval || !strings.Contains(err.Error(), "no answer within 1s") {
		t.Errorf("lost after %v: %v", mute, err)
	}
}

// A packet that takes long to arrive is no silence.
func TestSlowPacketIsNoSilence(t *testing.T) {
	server := newMockServer(t)
	worker := startWorker(t, server.address(), []string{"f"}, func(w *gearman.Worker) {
		w.PingInterval = 50 * time.Millisecond
		w.PingTimeout = 4 * time.Second // longer than a loaded machine lets a byte wait, shorter than the packet takes
	})
	server.accept()
	server.expect(bytesSetClientID + bytesCanDoF + bytesGrab)
	for i := range bytesAssignH1 {
		server.send(bytesAssignH1[i : i+1])
		time.Sleep(6 * time.Second / time.Duration(len(bytesAssignH1)))
	}
	next(t, "job", worker.jobs)
	if len(worker.lost) > 0 {
		t.Errorf("lost: %v", <-worker.lost)
	}
}

func TestRunRefusesWrongFields(t *testing.T) {
	assigned := func(*gearman.Job) {}
	for name, worker := range map[string]*gearman.Worker{
		"no Assigned":     {Address: "127.0.0.1:1"},
		"blank client id": {Address: "127.0.0.1:1", Assigned: assigned, ClientID: "a b"},
		"long client id":  {Address: "127.0.0.1:1", Assigned: assigned, ClientID: strings.Repeat("x", 128)},
	} {
		t.Run(name, func(t *testing.T) {
			if err := worker.Run(context.Background()); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestSetFunctionsReportsBadNamesAndTakesTheOthers(t *testing.T) {
	server := newMockServer(t)
	worker := startWorker(t, server.address(), nil, nil)
	err := worker.SetFunctions([]string{"f", "a b", "f", "bad\xff"})
	if err == nil || !strings.Contains(err.Error(), `"a b"`) || !strings.Contains(err.Error(), `0xFF`) {
		t.Errorf("got %v", err)
	}
	server.accept()
	server.expect(bytesSetClientID + bytesCanDoF + bytesGrab)
	server.expectSilence(50 * time.Millisecond)
}

// TestWorkerForgetsWhatItReadAhead: a write fails while the reader has a job more than it has handled. That job is nobody's.
func TestWorkerForgetsWhatItReadAhead(t *testing.T) {
	server := newMockServer(t)
	var full atomic.Bool
	entered, leave := make(chan struct{}, 100), make(chan struct{})
	worker := startWorker(t, server.address(), []string{"f"}, func(w *gearman.Worker) {
		forward := w.Assigned
		w.Free = func() bool { return !full.Load() } // a full worker sends nothing for a job, so it is not the reader's write that fails
		w.Assigned = func(job *gearman.Job) {
			full.Store(true)
			entered <- struct{}{}
			<-leave
			forward(job)
		}
	})
	server.accept()
	server.expect(bytesSetClientID + bytesCanDoF + bytesGrab)
	next(t, "connection", worker.connected)
	server.send(strings.Repeat(bytesAssignH1, 20))
	next(t, "assignment", entered)
	must(t, server.conn.(*net.TCPConn).SetLinger(0))
	server.hangUp() // with a RST: every write fails from now on
	must(t, worker.SetFunctions([]string{"f", "g"}))
	time.Sleep(5 * time.Millisecond) // long enough for the change of functions to be next in line, as a mutex has it
	close(leave)
	_ = next(t, "loss", worker.lost)
	for len(worker.jobs) > 0 {
		if job := <-worker.jobs; !errors.Is(job.Err(), gearman.ErrHandleLost) {
			t.Errorf("a job of the connection has error %v", job.Err())
		}
	}
}
