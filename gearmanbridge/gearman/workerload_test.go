package gearman_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

func TestManyJobsAtOnce(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, _ bool) {
		const total, submitters = 500, 4
		worker := startWorker(t, address, []string{"f"}, func(w *gearman.Worker) {
			w.Assigned = func(job *gearman.Job) {
				go func() {
					_ = job.Data([]byte("d" + job.Unique))
					_ = job.Status(1, 2)
					_ = job.Complete(job.Payload)
				}()
			}
		})
		client := dialClient(t, address)
		var group sync.WaitGroup
		for s := range submitters {
			group.Go(func() {
				var tasks []*gearman.Task
				for i := range total / submitters {
					unique := fmt.Sprintf("%d-%d", s, i)
					task, err := client.Submit(testContext(t), gearman.PriorityNormal, "f", unique, []byte("p"+unique))
					if err != nil {
						t.Error(err)
						return
					}
					tasks = append(tasks, task)
				}
				for _, task := range tasks {
					want := []gearman.Event{
						{Type: gearman.PacketWorkData, Data: []byte("d" + task.Unique)},
						{Type: gearman.PacketWorkStatus, Numerator: 1, Denominator: 2},
						{Type: gearman.PacketWorkComplete, Data: []byte("p" + task.Unique)},
					}
					if diff := cmp.Diff(want, events(t, task)); diff != "" {
						t.Errorf("%s (-want +got):\n%s", task.Unique, diff)
					}
				}
			})
		}
		group.Wait()
		if len(worker.errors) > 0 {
			t.Errorf("server error %s", <-worker.errors)
		}
	})
}

func TestThreeThousandFunctions(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, _ bool) {
		var names []string
		for i := range 3000 {
			names = append(names, fmt.Sprintf("build:a-job-with-quite-a-long-name-as-zuul-has-them-%04d", i))
		}
		admin := dialAdmin(t, address)
		registered := func() bool {
			functions, err := admin.Status(testContext(t))
			must(t, err)
			return len(functions) == len(names) && !slices.ContainsFunc(functions, func(f gearman.FunctionStatus) bool { return f.Workers == 0 })
		}
		begun := time.Now()
		worker := startWorker(t, address, names, nil)
		eventually(t, "all functions", registered)
		quickest := time.Since(begun)
		for try := 0; try < 2 && quickest > 5*time.Second; try++ { // the machine may be busy with other tests
			begun = time.Now()
			worker.Reconnect()
			eventually(t, "all functions gone", func() bool { return !registered() })
			eventually(t, "all functions again", registered)
			quickest = min(quickest, time.Since(begun))
		}
		if quickest > 5*time.Second {
			t.Errorf("registered after %v at least", quickest)
		}
		functions, err := admin.Status(testContext(t))
		must(t, err)
		for _, function := range functions {
			if function.Workers != 1 {
				t.Errorf("%+v", function)
			}
		}
		client := dialClient(t, address)
		for _, i := range []int{0, 1500, 2999} {
			submit(t, client, names[i], "", "")
			job := next(t, "job", worker.jobs)
			if job.Function != names[i] {
				t.Errorf("got %s, want %s", job.Function, names[i])
			}
			must(t, job.Complete(nil))
		}
	})
}

// Only packets that every server knows leave a worker.
func TestOnlyStandardPackets(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, _ bool) {
		proxy := gearmantest.NewProxy(t, address)
		worker := startWorker(t, proxy.Address, []string{"f"}, func(w *gearman.Worker) { w.PingInterval = 20 * time.Millisecond })
		client := dialClient(t, address)
		for range 3 {
			submit(t, client, "f", "", "")
			job := next(t, "job", worker.jobs)
			must(t, job.Data(nil))
			_, err := job.Query(testContext(t))
			must(t, err)
			must(t, job.Complete(nil))
		}
		must(t, worker.SetFunctions([]string{"g"}))
		eventually(t, "pings", func() bool { return requests(proxy, gearman.PacketGetStatus) > 10 })
		known := map[gearman.PacketType]bool{
			gearman.PacketSetClientID: true, gearman.PacketCanDo: true, gearman.PacketCantDo: true,
			gearman.PacketGrabJobUniq: true, gearman.PacketPreSleep: true, gearman.PacketGetStatus: true,
			gearman.PacketWorkData: true, gearman.PacketWorkComplete: true,
		}
		for _, packet := range proxy.Packets(gearmantest.ToServer) {
			if !known[packet.Type] {
				t.Errorf("a worker sent %v", packet)
			}
		}
	})
}
