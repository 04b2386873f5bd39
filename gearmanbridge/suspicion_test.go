package gearmanbridge

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// forgetfulServer assigns one job, and asks knows whether it knows it still. Each code is sent as an ERROR.
func forgetfulServer(t *testing.T, unique string, knows func() bool, codes <-chan string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	serve := func(connection net.Conn) {
		defer func() { _ = connection.Close() }()
		answer := func(packetType gearman.PacketType, args ...string) {
			packet := gearman.Packet{Response: true, Type: packetType}
			for _, arg := range args {
				packet.Args = append(packet.Args, []byte(arg))
			}
			var whole bytes.Buffer // errors are sent beside the answers
			_ = gearman.WritePacket(&whole, packet)
			_, _ = connection.Write(whole.Bytes())
		}
		builds := false
		for {
			packet, err := gearman.ReadPacket(connection, 0)
			if err != nil {
				return
			}
			switch packet.Type {
			case gearman.PacketCanDo:
				builds = builds || string(packet.Args[0]) == "build:unit"
			case gearman.PacketGrabJobUniq:
				if !builds {
					answer(gearman.PacketNoJob)
					continue
				}
				builds = false
				answer(gearman.PacketJobAssignUniq, "H:host:1", "build:unit", unique, "{}")
			case gearman.PacketWorkStatus:
				go func() {
					for code := range codes {
						answer(gearman.PacketError, code, "text")
					}
				}()
			case gearman.PacketGetStatus:
				known := "1"
				if string(packet.Args[0]) == "H:host:1" && !knows() {
					known = "0"
				}
				answer(gearman.PacketStatusRes, string(packet.Args[0]), known, known, "0", "0")
			default:
			}
		}
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(connection)
		}
	}()
	return listener.Addr().String()
}

// TestJobNotFoundIsLookedInto: ERROR JOB_NOT_FOUND names no handle. The jobs are asked for at once, and those that live go on.
func TestJobNotFoundIsLookedInto(t *testing.T) {
	unique := zuulclient.NewUUID()
	var forgotten atomic.Bool
	codes := make(chan string)
	defer close(codes)
	proxy := gearmantest.NewProxy(t, forgetfulServer(t, unique, func() bool { return !forgotten.Load() }, codes))
	f := startBridge(t, proxy.Address, never)
	f.job("unit")
	build := f.build(unique)
	f.awaitListener(build)
	f.awaitQuestions(proxy, "H:host:1", 1) // the one at the assignment
	codes <- "JOB_NOT_FOUND"
	gearmantest.Eventually(t, patience, "the answer that it knows the job", func() bool {
		answers := 0
		for _, packet := range proxy.Packets(gearmantest.FromServer) {
			if packet.Type == gearman.PacketStatusRes && string(packet.Args[0]) == "H:host:1" {
				answers++
			}
		}
		return answers == 2
	})
	forgotten.Store(true)
	if build = f.build(unique); build.Spec.Abort {
		t.Fatal("stopped while the server knew the job")
	}
	codes <- "UNKNOWN_OPTION"
	codes <- "JOB_NOT_FOUND"
	f.checkFailedOnce(proxy, f.awaitAbandoned(unique), "H:host:1")
}

// TestFinishedMeanwhileIsNotSwept: that the server knows a job no more means nothing if we finished it ourselves before the answer came.
func TestFinishedMeanwhileIsNotSwept(t *testing.T) {
	unique := zuulclient.NewUUID()
	questions := make(chan chan bool)
	knows := func() bool {
		answer := make(chan bool)
		select {
		case questions <- answer:
			return <-answer
		case <-t.Context().Done():
			return true
		}
	}
	f := startBridge(t, forgetfulServer(t, unique, knows, nil), never)
	f.job("unit")
	<-questions <- true // the one at the assignment
	listener := f.awaitListener(f.build(unique))
	reason := make(chan orphanCause)
	go func() { reason <- whyNobodyWaits(t.Context(), listener.job, nil) }()
	answer := <-questions
	must(t, listener.job.Fail())
	answer <- false
	if reason := <-reason; reason != "" {
		t.Errorf("found that %s", reason.text())
	}
}

// TestEndedIsReported: a sweep leaves the job of a build that has ended to the reporter, however late that is.
func TestEndedIsReported(t *testing.T) {
	unique := zuulclient.NewUUID()
	var forgotten atomic.Bool
	proxy := gearmantest.NewProxy(t, forgetfulServer(t, unique, func() bool { return !forgotten.Load() }, nil))
	f := startBridge(t, proxy.Address, never)
	f.job("unit")
	build := f.build(unique)
	listener := f.awaitListener(build)
	listener.sending.Lock()
	f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
	f.awaitSeen(build, "the end of the build", (*v1alpha1.ZuulBuild).Complete)
	forgotten.Store(true)
	swept := make(chan struct{})
	go func() {
		defer close(swept)
		f.bridge.sweep(t.Context(), []*assignment{listener}, nil)
	}()
	select {
	case <-swept:
	case <-time.After(patience):
		t.Error("the sweep waits to finish the job")
	}
	listener.sending.Unlock()
	<-swept
	<-listener.job.Done()
	gearmantest.Eventually(t, patience, "the end", func() bool { return len(finals(proxy, "H:host:1")) > 0 })
	if got := finals(proxy, "H:host:1"); got[gearman.PacketWorkComplete] != 1 || len(got) != 1 {
		t.Errorf("finishing packets %v", got)
	}
}

// stubborn refuses the first writes.
type stubborn struct {
	client.Client
	refusals atomic.Int32
}

func (s *stubborn) Patch(ctx context.Context, object client.Object, patch client.Patch, options ...client.PatchOption) error {
	if s.refusals.Add(-1) >= 0 {
		return errors.New("the API server takes nothing now")
	}
	return s.Client.Patch(ctx, object, patch, options...)
}

// TestSweepTriesAgain: the job is kept until the end of its build is written down.
func TestSweepTriesAgain(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	proxy := gearmantest.NewProxy(t, address)
	api := &stubborn{}
	f := startBridge(t, proxy.Address, func(bridge *Bridge) {
		often(bridge)
		api.Client = bridge.Client
		bridge.Client = api
	})
	f.job("unit")
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	request := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	api.refusals.Store(2)
	must(t, zuul.Close())
	gearmantest.Eventually(t, patience, "a refusal", func() bool { return api.refusals.Load() < 2 })
	if got := finals(proxy, request.State().Handle); len(got) > 0 && api.refusals.Load() > 0 {
		t.Errorf("finishing packets %v before the build was marked to stop", got)
	}
	f.checkFailedOnce(proxy, f.awaitAbandoned(request.State().UUID), request.State().Handle)
}
