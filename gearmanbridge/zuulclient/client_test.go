package zuulclient

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func onBothServers(t *testing.T, test func(t *testing.T, behaviour gearman.Behaviour, address string)) {
	for _, behaviour := range []gearman.Behaviour{gearman.Gearmand, gearman.Geard} {
		t.Run(behaviour.String(), func(t *testing.T) {
			address, _ := gearmantest.StartServer(t, behaviour)
			test(t, behaviour, address)
		})
	}
}

// startWorker gives every job of the functions to the channel.
func startWorker(t testing.TB, address string, functions ...string) <-chan *gearman.Job {
	t.Helper()
	jobs := make(chan *gearman.Job, 100)
	connected := make(chan struct{}, 100)
	worker := &gearman.Worker{
		Address:   address,
		Assigned:  func(job *gearman.Job) { jobs <- job },
		Connected: func() { connected <- struct{}{} },
	}
	must(t, worker.SetFunctions(functions))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- worker.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
	next(t, connected)
	return jobs
}

func dial(t testing.TB, address string, dialect Dialect) *Client {
	t.Helper()
	client, err := Dial(testContext(t), address, nil, dialect)
	must(t, err)
	client.CancelPause = 200 * time.Millisecond
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// submit submits once the function is registered.
func submit(t testing.TB, client *Client, request Request) *Build {
	t.Helper()
	client.Settling = Settling{Interval: 5 * time.Millisecond}
	must(t, client.AwaitRegistered(testContext(t), request.Function()))
	build, err := client.Submit(testContext(t), request)
	must(t, err)
	return build
}

func next[T any](t testing.TB, channel <-chan T) T {
	t.Helper()
	select {
	case value := <-channel:
		return value
	case <-testContext(t).Done():
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// play sends the events of a script.
func play(t testing.TB, job *gearman.Job, events []gearman.Event) {
	t.Helper()
	for _, event := range events {
		switch event.Type {
		case gearman.PacketWorkData:
			must(t, job.Data(event.Data))
		case gearman.PacketWorkStatus:
			must(t, job.Status(event.Numerator, event.Denominator))
		case gearman.PacketWorkComplete:
			must(t, job.Complete(event.Data))
		default:
			must(t, job.Fail())
		}
	}
}

func TestScripts(t *testing.T) {
	onBothServers(t, func(t *testing.T, _ gearman.Behaviour, address string) {
		jobs := startWorker(t, address, "build:j")
		for _, test := range scripts {
			t.Run(test.name, func(t *testing.T) {
				build := submit(t, dial(t, address, test.dialect), Request{Job: "j"})
				play(t, next(t, jobs), test.events)
				state, err := build.Wait(testContext(t))
				must(t, err)
				if diff := cmp.Diff(test.want, seenOf(state)); diff != "" {
					t.Errorf("(-want +got):\n%s\n%v", diff, state.Violations)
				}
				var events []gearman.Event
				for _, packet := range state.Packets {
					events = append(events, packet.Event)
				}
				if diff := cmp.Diff(test.events, events); diff != "" {
					t.Errorf("packets (-want +got):\n%s", diff)
				}
			})
		}
	})
}

func TestSubmission(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	jobs := startWorker(t, address, "build:j", "build:j:n")
	client := dial(t, address, Zuul2)
	uuidPattern := regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}$`)
	for _, test := range []struct {
		name         string
		request      Request
		function     string
		unique, want string // UUID stands for the build's
	}{
		{"nothing", Request{Job: "j"}, "build:j", "", `{"ZUUL_UUID":"UUID"}`},
		{"parameters", Request{Job: "j", UUID: "u", Parameters: map[string]any{"A": 1, "B": "é<", "C": nil}}, "build:j",
			"u", `{"A":1,"B":"\u00e9<","C":null,"ZUUL_UUID":"u"}`},
		{"node", Request{Job: "j", Node: "n"}, "build:j:n", "", `{"ZUUL_NODE":"n","ZUUL_UUID":"UUID"}`},
		{"node from the parameters", Request{Job: "j", Parameters: map[string]any{"ZUUL_NODE": "n"}}, "build:j:n",
			"", `{"ZUUL_NODE":"n","ZUUL_UUID":"UUID"}`},
		{"UUID from a parameter function", Request{Job: "j", UUID: "u", Parameters: map[string]any{"ZUUL_UUID": "v"}}, "build:j",
			"u", `{"ZUUL_UUID":"v"}`},
		{"raw", Request{Job: "j", Payload: []byte("no JSON\x00")}, "build:j", "", "no JSON\x00"},
	} {
		t.Run(test.name, func(t *testing.T) {
			build := submit(t, client, test.request)
			job := next(t, jobs)
			must(t, job.Fail())
			uuid := build.State().UUID
			if test.unique == "" && !uuidPattern.MatchString(uuid) {
				t.Errorf("UUID %q is no version 4", uuid)
			}
			if test.unique != "" && uuid != test.unique || job.Unique != uuid {
				t.Errorf("UUID %q, unique %q, want %q", uuid, job.Unique, test.unique)
			}
			if job.Function != test.function {
				t.Errorf("function: got %q, want %q", job.Function, test.function)
			}
			payload := regexp.MustCompile(uuidPattern.String()[1:len(uuidPattern.String())-1]).ReplaceAll(job.Payload, []byte("UUID"))
			if string(payload) != test.want {
				t.Errorf("argument: got %s, want %s", payload, test.want)
			}
			_, err := build.Wait(testContext(t))
			must(t, err)
		})
	}
}

func TestRegistration(t *testing.T) {
	onBothServers(t, func(t *testing.T, _ gearman.Behaviour, address string) {
		client := dial(t, address, Zuul2)
		if _, err := client.Submit(testContext(t), Request{Job: "late"}); !errors.Is(err, ErrNotRegistered) {
			t.Fatalf("Submit: got %v, want ErrNotRegistered", err)
		}
		client.Settling = Settling{Interval: time.Millisecond, Quiet: 20 * time.Millisecond}
		if err := client.AwaitRegistered(testContext(t), "build:late"); !errors.Is(err, ErrNotRegistered) {
			t.Fatalf("AwaitRegistered: got %v, want ErrNotRegistered", err)
		}
		client.Settling.Quiet = 10 * time.Second
		waited := make(chan error, 1)
		ctx := testContext(t)
		go func() { waited <- client.AwaitRegistered(ctx, "build:late") }()
		startWorker(t, address, "build:late", "stop:m")
		must(t, next(t, waited))
		registered, err := client.Registered(testContext(t), "stop:m")
		if err != nil || !registered {
			t.Errorf("Registered: got %v, %v", registered, err)
		}
		if _, err := client.Submit(testContext(t), Request{Job: "a b"}); err == nil {
			t.Error("a job name with a blank was submitted")
		}
	})
}

func TestCancelRunning(t *testing.T) {
	for _, test := range []struct {
		dialect  Dialect
		argument func(uuid string) string
	}{
		{Zuul2, func(string) string { return `{"name":"j","number":7}` }},
		{Branch, func(uuid string) string { return uuid }},
	} {
		t.Run(test.dialect.String(), func(t *testing.T) {
			onBothServers(t, func(t *testing.T, _ gearman.Behaviour, address string) {
				jobs := startWorker(t, address, "build:j")
				stops := startWorker(t, address, "stop:m")
				build := submit(t, dial(t, address, test.dialect), Request{Job: "j"})
				job := next(t, jobs)
				play(t, job, []gearman.Event{data(started), status(0, -1)})
				_, err := build.Await(testContext(t), func(s State) bool { return s.Number != nil })
				must(t, err)
				cancellation, err := build.Cancel(testContext(t))
				must(t, err)
				stop := next(t, stops)
				if got, want := string(stop.Payload), test.argument(build.State().UUID); got != want {
					t.Errorf("argument: got %s, want %s", got, want)
				}
				must(t, stop.Complete(nil))
				answer, err := cancellation.Stop.Wait(testContext(t))
				if err != nil || answer.Type != gearman.PacketWorkComplete {
					t.Errorf("answer: %v, %v", answer.Type, err)
				}
				play(t, job, []gearman.Event{data(`{"result":"ABORTED"}`), fail()})
				state, err := build.Wait(testContext(t))
				must(t, err)
				if state.Outcome != Canceled || state.Result != "ABORTED" {
					t.Errorf("got %q, %q", state.Outcome, state.Result)
				}
			})
		})
	}
}

// The stop: job goes before what was submitted earlier, but for the branch.
func TestCancelPriority(t *testing.T) {
	for dialect, want := range map[Dialect]string{Zuul2: "stop:m", Branch: "waits"} {
		t.Run(dialect.String(), func(t *testing.T) {
			address, _ := gearmantest.StartServer(t, gearman.Geard)
			jobs := startWorker(t, address, "build:j")
			client := dial(t, address, dialect)
			build := submit(t, client, Request{Job: "j"})
			job := next(t, jobs)
			play(t, job, []gearman.Event{data(started)})
			_, err := build.Await(testContext(t), func(s State) bool { return s.Number != nil })
			must(t, err)
			waits, err := client.Gearman.Submit(testContext(t), gearman.PriorityNormal, "waits", "", nil)
			must(t, err)
			_, err = build.Cancel(testContext(t))
			must(t, err)
			others := startWorker(t, address, "waits", "stop:m")
			first, second := next(t, others), next(t, others)
			if first.Function != want {
				t.Errorf("first is %s, want %s", first.Function, want)
			}
			must(t, first.Fail())
			must(t, second.Fail())
			_, err = waits.Wait(testContext(t))
			must(t, err)
			must(t, job.Fail())
			_, err = build.Wait(testContext(t))
			must(t, err)
		})
	}
}

func TestCancelQueued(t *testing.T) {
	onBothServers(t, func(t *testing.T, _ gearman.Behaviour, address string) {
		client := dial(t, address, Zuul2)
		build, err := client.Submit(testContext(t), Request{Job: "j", Unchecked: true})
		must(t, err)
		cancellation, err := build.Cancel(testContext(t))
		if err != nil || !cancellation.Dequeued {
			t.Fatalf("got %+v, %v", cancellation, err)
		}
		state, err := build.Wait(testContext(t))
		must(t, err)
		if state.Outcome != Canceled || state.Completed.IsZero() {
			t.Errorf("got %q, %v", state.Outcome, state.Completed)
		}
	})
}

// Between its assignment and its first packet a build is out of reach; the two
// servers differ in what they tell Zuul.
func TestCancelAssigned(t *testing.T) {
	onBothServers(t, func(t *testing.T, behaviour gearman.Behaviour, address string) {
		jobs := startWorker(t, address, "build:j")
		build := submit(t, dial(t, address, Zuul2), Request{Job: "j"})
		next(t, jobs)
		cancellation, err := build.Cancel(testContext(t))
		if behaviour == gearman.Gearmand {
			if err != nil || !cancellation.Dequeued {
				t.Errorf("got %+v, %v, want it dequeued", cancellation, err)
			}
			return
		}
		if !errors.Is(err, ErrNotCanceled) {
			t.Errorf("got %+v, %v, want ErrNotCanceled", cancellation, err)
		}
	})
}

// geard only: the start that is reported while Zuul pauses lets it stop the
// build.
func TestCancelJustStarted(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	jobs := startWorker(t, address, "build:j")
	stops := startWorker(t, address, "stop:m")
	client := dial(t, address, Zuul2)
	client.CancelPause = 2 * time.Second
	build := submit(t, client, Request{Job: "j"})
	job := next(t, jobs)
	canceled := make(chan error, 1)
	ctx := testContext(t)
	go func() {
		_, err := build.Cancel(ctx)
		canceled <- err
	}()
	_, err := build.Await(ctx, func(s State) bool { return s.Canceled })
	must(t, err)
	play(t, job, []gearman.Event{data(started)})
	must(t, next(t, stops).Complete(nil))
	must(t, next(t, canceled))
	must(t, job.Fail())
	_, err = build.Wait(ctx)
	must(t, err)
}

func TestCancelWithoutManager(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	jobs := startWorker(t, address, "build:j")
	build := submit(t, dial(t, address, Zuul2), Request{Job: "j"})
	play(t, next(t, jobs), []gearman.Event{data(`{"number":1}`)})
	_, err := build.Await(testContext(t), func(s State) bool { return s.Number != nil })
	must(t, err)
	if _, err := build.Cancel(testContext(t)); !errors.Is(err, ErrNoManager) {
		t.Errorf("got %v, want ErrNoManager", err)
	}
}

func TestDescribe(t *testing.T) {
	for dialect, want := range map[Dialect]string{
		Zuul2:  `{"html_description":"<b>\u00e9</b>","name":"j","number":7}`,
		Branch: `{"html_description":"<b>\u00e9</b>","unique_id":"u"}`,
	} {
		t.Run(dialect.String(), func(t *testing.T) {
			address, _ := gearmantest.StartServer(t, gearman.Geard)
			jobs := startWorker(t, address, "build:j")
			build := submit(t, dial(t, address, dialect), Request{Job: "j", UUID: "u"})
			play(t, next(t, jobs), []gearman.Event{data(started), complete(succeeded)})
			_, err := build.Wait(testContext(t))
			must(t, err)
			if _, err := build.Describe(testContext(t), ""); !errors.Is(err, ErrNotRegistered) {
				t.Errorf("got %v, want ErrNotRegistered", err)
			}
			descriptions := startWorker(t, address, "set_description:m")
			must(t, build.client.AwaitRegistered(testContext(t), "set_description:m"))
			task, err := build.Describe(testContext(t), "<b>é</b>")
			must(t, err)
			description := next(t, descriptions)
			if got := string(description.Payload); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			must(t, description.Complete(nil))
			_, err = task.Wait(testContext(t))
			must(t, err)
		})
	}
}

// A lost server is a lost build, unless its result was there already.
func TestConnectionLost(t *testing.T) {
	for _, test := range []struct {
		name   string
		events []gearman.Event
		want   seen
	}{
		{"queued", nil, seen{Outcome: Retry}},
		{"running", []gearman.Event{data(started)}, good(Retry, "")},
		{"result sent", []gearman.Event{data(started), data(succeeded)}, good(Decided, "SUCCESS")},
	} {
		t.Run(test.name, func(t *testing.T) {
			address, server := gearmantest.StartServer(t, gearman.Geard)
			jobs := startWorker(t, address, "build:j")
			build := submit(t, dial(t, address, Zuul2), Request{Job: "j"})
			play(t, next(t, jobs), test.events)
			_, err := build.Await(testContext(t), func(s State) bool { return len(s.Packets) == len(test.events) })
			must(t, err)
			must(t, server.Close())
			state, err := build.Wait(testContext(t))
			if !errors.Is(err, gearman.ErrConnectionLost) {
				t.Errorf("got %v, want ErrConnectionLost", err)
			}
			if diff := cmp.Diff(test.want, seenOf(state)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAwaitEndsWithTheBuild(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	jobs := startWorker(t, address, "build:j")
	build := submit(t, dial(t, address, Zuul2), Request{Job: "j"})
	must(t, next(t, jobs).Fail())
	if _, err := build.Await(testContext(t), func(State) bool { return false }); err == nil {
		t.Error("no error")
	}
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	if _, err := build.Await(ctx, func(State) bool { return false }); err == nil {
		t.Error("no error of the context")
	}
	if _, err := json.Marshal(build.State()); err != nil {
		t.Error(err)
	}
}

func TestParseDialect(t *testing.T) {
	for _, want := range []Dialect{Zuul2, Branch} {
		if got, err := ParseDialect(want.String()); err != nil || got != want {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
	if _, err := ParseDialect("zuul3"); err == nil {
		t.Error("zuul3 is no dialect")
	}
}

// As long as workers come back there is hope for the one that is awaited.
func TestAwaitRegisteredWhileFunctionsChange(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	client := dial(t, address, Zuul2)
	client.Settling = Settling{Interval: time.Millisecond, Quiet: time.Nanosecond}
	names := []string{"a", "b", "c", "build:late"}
	dialAdmin := client.DialAdmin
	client.DialAdmin = func(ctx context.Context) (*gearman.Admin, error) {
		// Servers list a function from its first job on.
		if _, err := client.Gearman.Submit(ctx, gearman.PriorityNormal, names[0], "", nil); err != nil {
			return nil, err
		}
		names = names[1:]
		return dialAdmin(ctx)
	}
	must(t, client.AwaitRegistered(testContext(t), "build:late"))
	if len(names) > 0 {
		t.Errorf("not looked for: %v", names)
	}
}
