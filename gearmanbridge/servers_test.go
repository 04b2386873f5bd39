package gearmanbridge

import (
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// startTwoServers runs a bridge with a server "one" as given and "two", an embedded geard at the address returned. change may set fields of the
// bridge before it runs.
func startTwoServers(t *testing.T, one Server, change func(*Bridge)) (f *fixture, two string) {
	t.Helper()
	two, _ = gearmantest.StartServer(t, gearman.Geard)
	one.Name = "one"
	return startBridge(t, "", func(bridge *Bridge) {
		bridge.Servers = []Server{one, {Name: "two", Address: two}}
		if change != nil {
			change(bridge)
		}
	}), two
}

// askStop has a Zuul send stop: with the argument, and returns the type of the answer.
func askStop(t *testing.T, zuul *zuulclient.Client, argument string) gearman.PacketType {
	t.Helper()
	task, err := zuul.Gearman.Submit(testContext(t), gearman.PriorityHigh, "stop:"+testManager, zuulclient.NewUUID(), []byte(argument))
	must(t, err)
	answer, err := task.Wait(testContext(t))
	must(t, err)
	return answer.Type
}

func nameAndNumber(build *v1alpha1.ZuulBuild) string {
	return fmt.Sprintf(`{"name": %q, "number": %d}`, build.Spec.Job, build.Spec.Number)
}

// TestTwoServersSameHandle: two servers give the same handle to two builds, and each Zuul gets the result of its own.
func TestTwoServersSameHandle(t *testing.T) {
	oneAddress, _ := gearmantest.StartServer(t, gearman.Geard)
	f, twoAddress := startTwoServers(t, Server{Address: oneAddress}, nil)
	f.job("unit")
	one := submit(t, dialZuul(t, oneAddress, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
	awaitStart(t, one)
	two := submit(t, dialZuul(t, twoAddress, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
	awaitStart(t, two)
	// geard's handles begin with the address that the client dialled, which is the same host here.
	if one.State().Handle != two.State().Handle {
		t.Fatalf("handles %s and %s differ: the test shows nothing", one.State().Handle, two.State().Handle)
	}
	for unique, server := range map[string]string{one.State().UUID: "one", two.State().UUID: "two"} {
		if label := f.build(unique).Labels[v1alpha1.LabelGearmanServer]; label != server {
			t.Errorf("the build of server %s is labelled with %q", server, label)
		}
	}
	f.ends(f.build(two.State().UUID), v1alpha1.PhaseFailed, "FAILURE")
	if state := awaitEnd(t, two); state.Result != "FAILURE" {
		t.Errorf("the second Zuul got %q", state.Result)
	}
	if one.State().Ended() {
		t.Error("the build of the first Zuul ended with that of the second")
	}
	f.ends(f.build(one.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
	if state := awaitEnd(t, one); state.Result != "SUCCESS" {
		t.Errorf("the first Zuul got %q", state.Result)
	}
}

// TestStopOfAnotherServer: to a server the builds of another are unknown, by whatever they are named, and also while they are on their way.
func TestStopOfAnotherServer(t *testing.T) {
	oneAddress, _ := gearmantest.StartServer(t, gearman.Gearmand)
	open := make(chan struct{})
	f, twoAddress := startTwoServers(t, Server{Address: oneAddress}, func(bridge *Bridge) { bridge.Numbers = gate{bridge.Numbers, open} })
	f.job("unit")
	zuulOne, zuulTwo := dialZuul(t, oneAddress, zuulclient.Zuul2), dialZuul(t, twoAddress, zuulclient.Zuul2)
	one := submit(t, zuulOne, zuulclient.Request{Job: "unit"})
	gearmantest.Eventually(t, patience, "the request", func() bool { return len(f.bridge.assignments.all()) == 1 })
	if answer := askStop(t, zuulTwo, one.State().UUID); answer != gearman.PacketWorkFail {
		t.Errorf("a stranger's stop: of a build on its way was answered with %v", answer)
	}
	close(open)
	awaitStart(t, one)
	two := submit(t, zuulTwo, zuulclient.Request{Job: "unit"})
	awaitStart(t, two)
	buildOne, buildTwo := f.build(one.State().UUID), f.build(two.State().UUID)
	if buildOne.Spec.Number == buildTwo.Spec.Number {
		t.Errorf("both builds have number %d", buildOne.Spec.Number)
	}
	for _, argument := range []string{nameAndNumber(buildOne), buildOne.Spec.UUID} {
		if answer := askStop(t, zuulTwo, argument); answer != gearman.PacketWorkFail {
			t.Errorf("a stranger's stop: of %s was answered with %v", argument, answer)
		}
	}
	if build := f.build(one.State().UUID); build.Spec.Abort {
		t.Error("a stranger stopped the build")
	}
	// The same from the right server, to show that the argument was right.
	if answer := askStop(t, zuulOne, nameAndNumber(buildOne)); answer != gearman.PacketWorkComplete {
		t.Errorf("stop: was answered with %v", answer)
	}
	stopped := f.awaitBuild(one.State().UUID, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
	if f.build(two.State().UUID).Spec.Abort {
		t.Error("the wrong build was stopped, too")
	}
	f.ends(stopped, v1alpha1.PhaseAborted, "ABORTED")
	f.ends(f.build(two.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
	awaitEnd(t, one)
	if state := awaitEnd(t, two); state.Result != "SUCCESS" {
		t.Errorf("the other Zuul got %q", state.Result)
	}
}

// TestSameUniqueFromTwoServers: the second Zuul is refused, while the build of the first is on its way, while it runs and after its end, and
// gets a result that is no retry; the first notices nothing.
func TestSameUniqueFromTwoServers(t *testing.T) {
	oneAddress, _ := gearmantest.StartServer(t, gearman.Gearmand)
	f, twoAddress := startTwoServers(t, Server{Address: oneAddress}, nil)
	f.job("unit")
	zuulTwo := dialZuul(t, twoAddress, zuulclient.Zuul2)
	one := submit(t, dialZuul(t, oneAddress, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
	again := func(when string) {
		t.Helper()
		two := submit(t, zuulTwo, zuulclient.Request{Job: "unit", UUID: one.State().UUID})
		state := awaitEnd(t, two)
		message, _ := state.Worker.Extra["message"].(string)
		if state.Outcome != zuulclient.Decided || state.Result != resultInvalidRequest || !strings.Contains(message, `from Gearman server "one"`) {
			t.Errorf("%s: the second Zuul got %s %q, message %q", when, state.Outcome, state.Result, message)
		}
		// It knows what to stop only by its unique.
		if answer := askStop(t, zuulTwo, one.State().UUID); answer != gearman.PacketWorkFail {
			t.Errorf("%s: stop: was answered with %v", when, answer)
		}
	}
	awaitStart(t, one)
	again("waiting")
	f.runs(f.build(one.State().UUID))
	again("running")
	f.ends(f.build(one.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
	state := awaitEnd(t, one)
	if state.Result != "SUCCESS" || state.Starts != 1 {
		t.Errorf("the first Zuul got %q after %d starts", state.Result, state.Starts)
	}
	again("ended")
	if builds := f.builds(); len(builds) != 1 {
		t.Errorf("%d builds", len(builds))
	}
}

// TestUniqueOfBuildMadeByHand: a unique that is the name of a build a person made is refused with its reason.
func TestUniqueOfBuildMadeByHand(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	f := startBridge(t, address, nil)
	f.job("unit")
	byHand := &v1alpha1.ZuulBuild{}
	byHand.Namespace, byHand.Name, byHand.Spec.Job = f.namespace, "by-hand", "unit"
	must(t, f.api.Create(t.Context(), byHand))
	state := awaitEnd(t, submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit", UUID: "by-hand"}))
	if message, _ := state.Worker.Extra["message"].(string); state.Result != resultInvalidRequest || !strings.Contains(message, "made by hand") {
		t.Errorf("Zuul got %q, message %q", state.Result, message)
	}
}

// TestServerInTrouble: builds and stop: of one server go on whatever happens to the other, and the other is served again when it is well.
func TestServerInTrouble(t *testing.T) {
	authority, stranger := gearmantest.NewAuthority(t), gearmantest.NewAuthority(t)
	for name, test := range map[string]struct {
		attempts   int32 // to connect that are in trouble before it is looked at the other server
		harm, heal func(proxy *gearmantest.Proxy, server *tls.Config)
	}{
		"down": {
			attempts: 2,
			harm:     func(proxy *gearmantest.Proxy, _ *tls.Config) { proxy.Refuse(true); proxy.Cut() },
			heal:     func(proxy *gearmantest.Proxy, _ *tls.Config) { proxy.Refuse(false) },
		},
		"black hole": { // a handshake, and an established connection, that get no answer
			harm: func(proxy *gearmantest.Proxy, _ *tls.Config) { proxy.HalfOpen(true) },
			heal: func(proxy *gearmantest.Proxy, _ *tls.Config) { proxy.HalfOpen(false); proxy.Cut() },
		},
		"black hole after a cut": {
			attempts: 2,
			harm:     func(proxy *gearmantest.Proxy, _ *tls.Config) { proxy.HalfOpen(true); proxy.Cut() },
			heal:     func(proxy *gearmantest.Proxy, _ *tls.Config) { proxy.HalfOpen(false); proxy.Cut() },
		},
		"refusing TLS": {
			attempts: 2,
			harm:     func(proxy *gearmantest.Proxy, server *tls.Config) { server.ClientCAs = stranger.Pool(); proxy.Cut() },
			heal:     func(_ *gearmantest.Proxy, server *tls.Config) { server.ClientCAs = authority.Pool() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			address, server := serveTLS(t, authority)
			proxy := gearmantest.NewProxy(t, address)
			files := authority.WriteFiles(t.TempDir(), authority.Sign("worker", nil))
			attempts := atomic.Int32{}
			f, twoAddress := startTwoServers(t, Server{Address: proxy.Address, TLS: func() (*tls.Config, error) {
				attempts.Add(1)
				return files.Config()
			}}, nil)
			f.job("unit")
			config, err := files.Config()
			must(t, err)
			zuulOne, err := zuulclient.Dial(testContext(t), address, config, zuulclient.Zuul2)
			must(t, err)
			defer func() { _ = zuulOne.Close() }()
			zuulTwo := dialZuul(t, twoAddress, zuulclient.Zuul2)
			one := submit(t, zuulOne, zuulclient.Request{Job: "unit"})
			awaitStart(t, one)

			before := attempts.Load()
			server.change(func(config *tls.Config) { test.harm(proxy, config) })
			gearmantest.Eventually(t, patience, "attempts in trouble", func() bool { return attempts.Load() >= before+test.attempts })
			// Its build gets an end that cannot be told.
			f.ends(f.build(one.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
			for range 3 {
				ended, stopped := submit(t, zuulTwo, zuulclient.Request{Job: "unit"}), submit(t, zuulTwo, zuulclient.Request{Job: "unit"})
				awaitStart(t, ended)
				awaitStart(t, stopped)
				if answer := askStop(t, zuulTwo, nameAndNumber(f.build(stopped.State().UUID))); answer != gearman.PacketWorkComplete {
					t.Errorf("stop: was answered with %v", answer)
				}
				f.ends(f.awaitBuild(stopped.State().UUID, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort }),
					v1alpha1.PhaseAborted, "ABORTED")
				f.ends(f.build(ended.State().UUID), v1alpha1.PhaseFailed, "FAILURE")
				awaitEnd(t, stopped)
				if state := awaitEnd(t, ended); state.Result != "FAILURE" {
					t.Errorf("result %q", state.Result)
				}
			}
			if one.State().Ended() {
				t.Error("the first server's build ended: the test shows nothing")
			}

			server.change(func(config *tls.Config) { test.heal(proxy, config) })
			// Requeued by its server, its stored result is told.
			if state := awaitEnd(t, one); state.Result != "SUCCESS" || state.Starts != 1 {
				t.Errorf("the first Zuul got %q after %d starts", state.Result, state.Starts)
			}
		})
	}
}

// TestServerThatDoesNotRead: as many reports as may be on their way at once wait for the one server, and those to the other are sent.
func TestServerThatDoesNotRead(t *testing.T) {
	const reconcilers = 8
	oneAddress, _ := gearmantest.StartServer(t, gearman.Geard)
	f, twoAddress := startTwoServers(t, Server{Address: oneAddress}, func(bridge *Bridge) { bridge.MaxBuilds = capacity.NewCeiling(2 * reconcilers) })
	f.job("unit")
	zuulOne, zuulTwo := dialZuul(t, oneAddress, zuulclient.Zuul2), dialZuul(t, twoAddress, zuulclient.Zuul2)
	var stuck []*zuulclient.Build
	var locked []*assignment
	for range reconcilers {
		build := submit(t, zuulOne, zuulclient.Request{Job: "unit"})
		awaitStart(t, build)
		stuck = append(stuck, build)
		a := f.awaitListener(f.build(build.State().UUID))
		a.sending.Lock() // as whoever writes to a full connection has it, until the write times out
		locked = append(locked, a)
	}
	free := submit(t, zuulTwo, zuulclient.Request{Job: "unit"})
	awaitStart(t, free)
	for _, build := range append(slices.Clone(stuck), free) {
		f.ends(f.build(build.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
	}
	if state := awaitEnd(t, free); state.Result != "SUCCESS" {
		t.Errorf("the other server's Zuul got %q", state.Result)
	}
	for i, build := range stuck {
		if build.State().Ended() {
			t.Error("a report that waits was sent: the test shows nothing")
		}
		locked[i].sending.Unlock()
	}
	for _, build := range stuck {
		awaitEnd(t, build)
	}
}

// TestServerNeverThere: a server works, and the bridge drains, where the other cannot be reached at all.
func TestServerNeverThere(t *testing.T) {
	const missing = "127.0.0.1:1" // a port that nobody is given
	broken := func() (*tls.Config, error) { return nil, fmt.Errorf("ca.crt: it has no PEM certificate") }
	for name, one := range map[string]Server{"no server": {Address: missing}, "no files": {Address: missing, TLS: broken}} {
		t.Run(name, func(t *testing.T) {
			f, twoAddress := startTwoServers(t, one, nil)
			f.job("unit")
			request := submit(t, dialZuul(t, twoAddress, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
			awaitStart(t, request)
			f.ends(f.build(request.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
			if state := awaitEnd(t, request); state.Result != "SUCCESS" {
				t.Errorf("result %q", state.Result)
			}
			must(t, f.bridge.Drain(testContext(t)))
		})
	}
}

// tlsServer is an embedded gearmand that wants TLS.
type tlsServer struct {
	mu     sync.Mutex
	config *tls.Config // of new connections
}

func serveTLS(t *testing.T, authority *gearmantest.Authority) (address string, s *tlsServer) {
	t.Helper()
	s = &tlsServer{config: authority.ServerConfig()}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	gearmantest.ServeListener(t, &gearman.Server{}, tls.NewListener(listener, &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (config *tls.Config, _ error) {
			s.change(func(current *tls.Config) { config = current.Clone() })
			return config, nil
		},
	}))
	return listener.Addr().String(), s
}

func (s *tlsServer) change(how func(*tls.Config)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	how(s.config)
}
