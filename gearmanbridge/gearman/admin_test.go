package gearman_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

func TestAdmin(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, geard bool) {
		ctx, admin, client := testContext(t), dialAdmin(t, address), dialClient(t, address)
		worker := startWorker(t, address, []string{"f"}, func(w *gearman.Worker) {
			w.Free = func() bool { return false }
		})
		next(t, "connection", worker.connected)
		queued := submit(t, client, "f", "1", "")
		other := submit(t, client, "g", "2", "")

		eventually(t, "the registration", func() bool { return functionStatus(t, admin, "f").Workers == 1 })
		functions, err := admin.Status(ctx)
		must(t, err)
		want := []gearman.FunctionStatus{{Name: "f", Queued: 1, Workers: 1}, {Name: "g", Queued: 1}}
		byName := cmpopts.SortSlices(func(a, b gearman.FunctionStatus) bool { return a.Name < b.Name })
		if diff := cmp.Diff(want, functions, byName); diff != "" {
			t.Errorf("Status (-want +got):\n%s", diff)
		}
		var workers []gearman.WorkerInfo
		eventually(t, "the connections of the test alone", func() bool { // whoever looked whether the server was there may still be listed
			workers, err = admin.Workers(ctx)
			must(t, err)
			return len(workers) == 3
		})
		found := false
		for _, w := range workers {
			if w.ClientID == "test-worker" {
				found = cmp.Equal(w.Functions, []string{"f"}) && w.Address == "127.0.0.1"
			}
		}
		if !found {
			t.Errorf("Workers: %+v", workers)
		}
		must(t, admin.CancelJob(ctx, queued.Handle))
		if err := admin.CancelJob(ctx, "H:nope:1"); !errors.Is(err, gearman.ErrUnknownJob) {
			t.Errorf("CancelJob: got %v, want ErrUnknownJob", err)
		}
		if err := admin.CancelJob(ctx, "H:1\nstatus"); err == nil {
			t.Error("CancelJob took two lines")
		}
		if geard {
			return
		}
		jobs, err := admin.ShowJobs(ctx)
		must(t, err)
		wantJobs := []gearman.JobInfo{{Handle: queued.Handle, Ignored: true}, {Handle: other.Handle}}
		if diff := cmp.Diff(wantJobs, jobs, cmpopts.SortSlices(func(a, b gearman.JobInfo) bool { return a.Handle < b.Handle })); diff != "" {
			t.Errorf("ShowJobs (-want +got):\n%s", diff)
		}
		version, err := admin.Version(ctx)
		if err != nil || !strings.HasPrefix(version, "1.") {
			t.Errorf("Version: got %q, %v", version, err)
		}
	})
}

// The servers are told apart without waiting for an answer that never comes, and the connection serves on.
func TestBehaviour(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string, geard bool) {
		want := gearman.Gearmand
		if geard {
			want = gearman.Geard
		}
		proxy := gearmantest.NewProxy(t, address)
		admin := dialAdmin(t, proxy.Address)
		for range 2 {
			got, err := admin.Behaviour(testContext(t))
			must(t, err)
			if got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		}
		for _, packet := range proxy.Packets(gearmantest.ToServer) {
			if packet.Type != gearman.PacketEchoReq && packet.Type != gearman.PacketGetStatus {
				t.Errorf("sent %v", packet)
			}
		}
		if _, err := admin.Status(testContext(t)); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

func TestBehaviourOfOthers(t *testing.T) {
	tests := map[string]struct{ answer, err string }{
		"no Gearman server": {"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol error"},
		"another packet":    {"\x00RES\x00\x00\x00\x06\x00\x00\x00\x00", "protocol error: answer NOOP"},
		"other echo":        {"\x00RES\x00\x00\x00\x11\x00\x00\x00\x01x", `protocol error: answer ECHO_RES "x"`},
		"end":               {"", "EOF"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			server := newMockServer(t)
			admin := dialAdmin(t, server.address())
			server.accept()
			server.send(test.answer)
			must(t, server.conn.(interface{ CloseWrite() error }).CloseWrite())
			if _, err := admin.Behaviour(testContext(t)); err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("got %v, want an error with %q", err, test.err)
			}
		})
	}
}

// geard never answers what it does not know.
func TestAdminCommandWithoutAnswer(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	admin := dialAdmin(t, address)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := admin.Version(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "version") {
		t.Errorf("got %v, want a deadline exceeded that names the command", err)
	}
	if _, err := admin.Status(testContext(t)); !errors.Is(err, gearman.ErrConnectionLost) {
		t.Errorf("afterwards: got %v, want ErrConnectionLost", err)
	}
}

func TestAdminAnswers(t *testing.T) {
	status := func(ctx context.Context, a *gearman.Admin) (any, error) { return a.Status(ctx) }
	workers := func(ctx context.Context, a *gearman.Admin) (any, error) { return a.Workers(ctx) }
	jobs := func(ctx context.Context, a *gearman.Admin) (any, error) { return a.ShowJobs(ctx) }
	version := func(ctx context.Context, a *gearman.Admin) (any, error) { return a.Version(ctx) }
	tests := map[string]struct {
		call   func(context.Context, *gearman.Admin) (any, error)
		answer string
		want   any
		err    string
	}{
		"names with blanks and tabs": {status, "a b\tc\t3\t1\t2\r\n.\r\n", []gearman.FunctionStatus{{Name: "a b\tc", Queued: 2, Running: 1, Workers: 2}}, ""},
		"function called ERR":        {status, "ERR\t0\t0\t0\n.\n", []gearman.FunctionStatus{{Name: "ERR"}}, ""},
		"nothing":                    {status, ".\n", []gearman.FunctionStatus(nil), ""},
		"worker without functions":   {workers, "37 ::1 - :\n.\n", []gearman.WorkerInfo{{FileDescriptor: 37, Address: "::1", ClientID: "-"}}, ""},
		"unknown command":            {jobs, "ERR UNKNOWN_COMMAND Unknown+server+command\r\n", nil, `server refuses "show jobs": UNKNOWN_COMMAND Unknown server command`},
		"numbers missing":            {status, "f\t1\n.\n", nil, "protocol error"},
		"no number":                  {jobs, "H:1\t1\tx\t1\n.\n", nil, "protocol error"},
		"no worker":                  {workers, "hello\n.\n", nil, "protocol error"},
		"neither OK nor ERR":         {version, "1.1.20\n", nil, "protocol error"},
		"end in the middle":          {status, "f\t1\t", nil, "EOF"},
		"line without end":           {status, strings.Repeat("x", 2<<20), nil, "line of more than"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			server := newMockServer(t)
			admin := dialAdmin(t, server.address())
			server.accept()
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				_, _ = server.conn.Write([]byte(test.answer))
				_ = server.conn.(interface{ CloseWrite() error }).CloseWrite()
			}()
			got, err := test.call(testContext(t), admin)
			_ = admin.Close()
			<-sent
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got %v, want an error with %q", err, test.err)
				}
				return
			}
			must(t, err)
			if diff := cmp.Diff(test.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
