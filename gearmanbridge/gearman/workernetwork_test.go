package gearman_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

// requests counts the packets of a type that went to the server.
func requests(proxy *gearmantest.Proxy, packetType gearman.PacketType) int {
	count := 0
	for _, packet := range proxy.Packets(gearmantest.ToServer) {
		if packet.Type == packetType {
			count++
		}
	}
	return count
}

// functionStatus returns the line of `status` for a function.
func functionStatus(t testing.TB, admin *gearman.Admin, name string) gearman.FunctionStatus {
	t.Helper()
	functions, err := admin.Status(testContext(t))
	must(t, err)
	for _, function := range functions {
		if function.Name == name {
			return function
		}
	}
	return gearman.FunctionStatus{}
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	gearmantest.Eventually(t, patience, what, condition)
}

func TestCapacityHolds(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, _ bool) {
		const capacity, total = 3, 10
		proxy := gearmantest.NewProxy(t, address)
		var busy atomic.Int32
		worker := startWorker(t, proxy.Address, []string{"f"}, func(w *gearman.Worker) {
			assigned := w.Assigned
			w.Assigned = func(job *gearman.Job) { busy.Add(1); assigned(job) }
			w.Free = func() bool { return busy.Load() < capacity }
		})
		client := dialClient(t, address)
		admin := dialAdmin(t, address)
		var tasks []*gearman.Task
		for i := range total {
			tasks = append(tasks, submit(t, client, "f", fmt.Sprint(i), ""))
		}
		eventually(t, "a full worker", func() bool { return functionStatus(t, admin, "f").Running == capacity })
		grabs, sleeps := requests(proxy, gearman.PacketGrabJobUniq), requests(proxy, gearman.PacketPreSleep)
		if status := functionStatus(t, admin, "f"); status.Queued != total-capacity {
			t.Errorf("got %+v, want %d queued", status, total-capacity)
		}
		for i := range total {
			job := next(t, "job", worker.jobs)
			if job.Unique != fmt.Sprint(i) {
				t.Errorf("job %d is %s", i, job.Unique)
			}
			if i == 0 {
				if g, s := requests(proxy, gearman.PacketGrabJobUniq), requests(proxy, gearman.PacketPreSleep); g != grabs || s != sleeps {
					t.Errorf("a full worker sent %d grabs, %d sleeps", g-grabs, s-sleeps)
				}
			}
			if n := functionStatus(t, admin, "f").Running; n > capacity {
				t.Errorf("%d jobs run, more than %d", n, capacity)
			}
			must(t, job.Complete(nil))
			busy.Add(-1)
			worker.Wake()
		}
		for _, task := range tasks {
			if _, err := task.Wait(testContext(t)); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestAddedFunctionWakesSleeper(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, _ bool) {
		proxy := gearmantest.NewProxy(t, address)
		worker := startWorker(t, proxy.Address, []string{"f"}, nil)
		eventually(t, "PRE_SLEEP", func() bool { return requests(proxy, gearman.PacketPreSleep) > 0 })
		submit(t, dialClient(t, address), "late", "", "")
		must(t, worker.SetFunctions([]string{"f", "late"}))
		must(t, next(t, "job", worker.jobs).Complete(nil))
	})
}

func TestRemovedFunctionKeepsItsRunningJob(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, _ bool) {
		worker := startWorker(t, address, []string{"f", "g"}, nil)
		client, admin := dialClient(t, address), dialAdmin(t, address)
		task := submit(t, client, "f", "", "")
		job := next(t, "job", worker.jobs)
		must(t, worker.SetFunctions([]string{"g"}))
		other := submit(t, client, "g", "", "")
		must(t, next(t, "job", worker.jobs).Complete(nil)) // it has seen the change
		if _, err := other.Wait(testContext(t)); err != nil {
			t.Fatal(err)
		}
		must(t, job.Complete([]byte("done")))
		event, err := task.Wait(testContext(t))
		must(t, err)
		if string(event.Data) != "done" {
			t.Errorf("got %v", event)
		}
		eventually(t, "the function without worker", func() bool { return functionStatus(t, admin, "f").Workers == 0 })
		must(t, worker.SetFunctions([]string{"f", "g"}))
		must(t, worker.SetFunctions(nil))
		eventually(t, "no registration", func() bool { return functionStatus(t, admin, "g").Workers == 0 })
		if len(worker.lost) > 0 {
			t.Errorf("connection lost: %v", <-worker.lost)
		}
	})
}

func TestServerRestart(t *testing.T) {
	type restartable struct {
		address string
		restart func()
	}
	embedded := func(behaviour gearman.Behaviour) func(t *testing.T) restartable {
		return func(t *testing.T) restartable {
			address, server := gearmantest.StartServer(t, behaviour)
			return restartable{address, func() {
				_ = server.Close()
				server = &gearman.Server{Behaviour: behaviour}
				gearmantest.Serve(t, server, address)
			}}
		}
	}
	for name, start := range map[string]func(t *testing.T) restartable{
		"embedded gearmand": embedded(gearman.Gearmand),
		"embedded geard":    embedded(gearman.Geard),
		"real gearmand": func(t *testing.T) restartable {
			server := gearmantest.NewGearmand(t)
			return restartable{server.Address, func() { server.Kill(); server.Start() }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := start(t)
			worker := startWorker(t, server.address, []string{"f", "g"}, nil)
			next(t, "connection", worker.connected)
			client := dialClient(t, server.address)
			task := submit(t, client, "f", "old", "")
			old := next(t, "job", worker.jobs)

			server.restart()
			begun := time.Now()
			_ = next(t, "loss", worker.lost)
			next(t, "second connection", worker.connected)
			if took := time.Since(begun); took > 5*time.Second { // two at most, on a machine that does nothing else
				t.Errorf("registered again after %v", took)
			}
			if _, err := task.Wait(testContext(t)); !errors.Is(err, gearman.ErrConnectionLost) {
				t.Errorf("the client's task: got %v, want ErrConnectionLost", err)
			}

			task = submit(t, dialClient(t, server.address), "f", "new", "")
			job := next(t, "job", worker.jobs)
			if job.Handle() != old.Handle() {
				t.Errorf("handles %s, %s: this test needs them equal", old.Handle(), job.Handle())
			}
			if err := old.Complete([]byte("SUCCESS")); !errors.Is(err, gearman.ErrHandleLost) {
				t.Errorf("old job: got %v, want ErrHandleLost", err)
			}
			must(t, job.Complete([]byte("FAILURE")))
			event, err := task.Wait(testContext(t))
			must(t, err)
			if string(event.Data) != "FAILURE" {
				t.Errorf("the old result reached the new build: %q", event.Data)
			}
		})
	}
}

func TestCutConnection(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, geard bool) {
		proxy := gearmantest.NewProxy(t, address)
		worker := startWorker(t, proxy.Address, []string{"f"}, nil)
		task := submit(t, dialClient(t, address), "f", "uuid", "payload")
		job := next(t, "job", worker.jobs)
		proxy.Cut()
		<-job.Done()
		_ = next(t, "loss", worker.lost)
		if geard {
			event, err := task.Wait(testContext(t))
			must(t, err)
			if event.Type != gearman.PacketWorkFail {
				t.Errorf("got %v, want WORK_FAIL", event.Type)
			}
			return
		}
		again := next(t, "the same job", worker.jobs)
		if again.Unique != "uuid" || again.Handle() != job.Handle() || string(again.Payload) != "payload" {
			t.Errorf("got %q, %q, %q", again.Unique, again.Handle(), again.Payload)
		}
		if err := job.Complete(nil); !errors.Is(err, gearman.ErrHandleLost) {
			t.Errorf("got %v, want ErrHandleLost", err)
		}
		must(t, again.Complete(nil))
		if _, err := task.Wait(testContext(t)); err != nil {
			t.Error(err)
		}
	})
}

// TestReconnect: a worker that is told to gives up its connection with the jobs
// of it, and works on another.
func TestReconnect(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, isGeard bool) {
		worker := startWorker(t, address, []string{"build:a"}, nil)
		task := submit(t, dialClient(t, address), "build:a", "unique", "")
		lost := next(t, "job", worker.jobs)
		worker.Reconnect()
		<-lost.Done()
		if err := lost.Err(); !errors.Is(err, gearman.ErrHandleLost) {
			t.Errorf("the job ended with %v", err)
		}
		if isGeard {
			if end, err := task.Wait(testContext(t)); err != nil || end.Type != gearman.PacketWorkFail {
				t.Errorf("the job ended for its client with %v, %v", end.Type, err)
			}
			submit(t, dialClient(t, address), "build:a", "another", "")
		}
		must(t, next(t, "job on the next connection", worker.jobs).Complete(nil))
	})
}

func TestHalfOpenConnectionIsGivenUp(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, _ bool) {
		proxy := gearmantest.NewProxy(t, address)
		worker := startWorker(t, proxy.Address, []string{"f"}, func(w *gearman.Worker) {
			w.PingInterval = 100 * time.Millisecond
			w.PingTimeout = 5 * time.Second
		})
		client := dialClient(t, address)
		submit(t, client, "f", "", "")
		job := next(t, "job", worker.jobs)
		eventually(t, "answered pings", func() bool { return requests(proxy, gearman.PacketGetStatus) > 3 })
		if len(worker.lost) > 0 {
			t.Fatalf("lost with the server there: %v", <-worker.lost)
		}
		proxy.HalfOpen(true)
		_ = next(t, "loss", worker.lost)
		if err := job.Err(); !errors.Is(err, gearman.ErrHandleLost) {
			t.Errorf("got %v, want ErrHandleLost", err)
		}
		proxy.HalfOpen(false)
		proxy.Cut()
		submit(t, client, "f", "after", "")
		eventually(t, "the job after", func() bool { return next(t, "job", worker.jobs).Unique == "after" })
	})
}

// A process that hangs without closing anything.
func TestPausedGearmandIsGivenUp(t *testing.T) {
	server := gearmantest.NewGearmand(t)
	worker := startWorker(t, server.Address, []string{"f"}, func(w *gearman.Worker) {
		w.PingInterval = 100 * time.Millisecond
		w.PingTimeout = 2 * time.Second
	})
	next(t, "connection", worker.connected)
	server.Pause()
	_ = next(t, "loss", worker.lost)
	server.Resume()
	submit(t, dialClient(t, server.Address), "f", "", "")
	must(t, next(t, "job", worker.jobs).Complete(nil))
}

func TestDrain(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, _ bool) {
		worker := startWorker(t, address, []string{"f"}, nil)
		client, admin := dialClient(t, address), dialAdmin(t, address)
		task := submit(t, client, "f", "1", "")
		job := next(t, "job", worker.jobs)
		// Drained is not known before the outstanding grab is answered, so
		// this second job may still come.
		worker.Drain()
		submit(t, client, "f", "2", "")
		must(t, job.Data([]byte("still here")))
		select {
		case <-worker.Drained():
			t.Error("drained with a job running")
		case <-time.After(50 * time.Millisecond):
		}
		must(t, job.Complete(nil))
		if _, err := task.Wait(testContext(t)); err != nil {
			t.Error(err)
		}
		select {
		case late := <-worker.jobs:
			must(t, late.Complete(nil))
		case <-worker.Drained():
		}
		next(t, "end of the drain", worker.Drained())
		submit(t, client, "f", "3", "")
		eventually(t, "the third job in the queue, and nothing running", func() bool { // gearmand takes a WORK_COMPLETE in its own time
			status := functionStatus(t, admin, "f")
			return status.Running == 0 && status.Queued > 0 && status.Workers == 1
		})
		if len(worker.jobs) > 0 || len(worker.lost) > 0 {
			t.Errorf("%d jobs and %d losses after the drain", len(worker.jobs), len(worker.lost))
		}
	})
}

func TestDrainWithoutConnection(t *testing.T) {
	worker := startWorker(t, "127.0.0.1:1", []string{"f"}, nil)
	worker.Drain()
	next(t, "end of the drain", worker.Drained())
}
