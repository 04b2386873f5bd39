//go:build linux

package conformance

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
	"zuulbuild.dev/zuulbuild/hack/programs"
)

// manager is the MANAGER of stop:MANAGER.
const manager = "conformance"

// flavour is a kind of Gearman server.
type flavour struct {
	name      string
	geard     bool
	arguments []string // of gearmand
}

var (
	gearmand   = &flavour{name: "gearmand"}
	roundRobin = &flavour{name: "gearmand-round-robin", arguments: []string{"--round-robin"}}
	oneWakeup  = &flavour{name: "gearmand-worker-wakeup-1", arguments: []string{"--worker-wakeup=1"}}
	oneRetry   = &flavour{name: "gearmand-job-retries-1", arguments: []string{"--job-retries=1"}}
	geard      = &flavour{name: "geard", geard: true}

	everyServer = []*flavour{gearmand, roundRobin, oneWakeup, oneRetry, geard}
	// bothKinds are enough where flags make no difference.
	bothKinds = []*flavour{gearmand, geard}
	// requeuing servers give the jobs of a lost worker to the next; the others fail them.
	requeuing = []*flavour{gearmand, roundRobin, oneWakeup}
	failing   = []*flavour{oneRetry, geard}
)

// server is a running Gearman server that can be ended, with all its jobs, and started again at the same address.
type server struct {
	address    string
	end, start func()
}

func (f *flavour) serve(t *testing.T) *server {
	t.Helper()
	if f.geard {
		address, running := gearmantest.StartServer(t, gearman.Geard)
		return &server{
			address: address,
			end:     func() { must(t, running.Close()) },
			start: func() {
				running = &gearman.Server{Behaviour: gearman.Geard}
				gearmantest.Serve(t, running, address)
			},
		}
	}
	process := gearmantest.NewGearmand(t, f.arguments...)
	return &server{address: process.Address, end: process.Kill, start: process.Start}
}

func (s *server) restart() {
	s.end()
	s.start()
}

// suite is what all worlds share.
type suite struct {
	api        client.WithWatch
	kubelet    *kubelet
	kubeconfig string
}

func newSuite(t *testing.T) *suite {
	t.Helper()
	access := apiserver.Config(t)
	scheme := runtime.NewScheme()
	must(t, clientgoscheme.AddToScheme(scheme))
	must(t, v1alpha1.AddToScheme(scheme))
	api, err := client.NewWithWatch(access, client.Options{Scheme: scheme})
	must(t, err)
	buildProgram(t)
	return &suite{api: api, kubelet: startKubelet(t), kubeconfig: apiserver.Kubeconfig(t)}
}

// world is an operator before a Gearman server, with a network between the two that can fail. It has namespaces of its own, so that it sees nothing
// of other worlds.
type world struct {
	*suite
	flavour *flavour
	// servers and proxies: most worlds have one of each.
	servers []*server
	proxies []*gearmantest.Proxy
	// inspectors look at what goes through the proxies, at the end or, by audit, before.
	inspectors []*inspector
	// namespace is where jobs and builds are. In strict, no Pod can be: its quota is 0, and Pod Security is restricted.
	namespace, strict string

	flags    []string
	folder   string
	operator *programs.Program
	jobs     atomic.Int64
}

// newWorld starts a world that ends with the test. Each server is one of the flavour.
func (s *suite) newWorld(t *testing.T, f *flavour, servers int, flags ...string) *world {
	t.Helper()
	w := &world{suite: s, flavour: f, namespace: apiserver.Namespace(t), strict: apiserver.Namespace(t), folder: t.TempDir()}
	w.restrict(t)
	for range servers {
		running := f.serve(t)
		w.servers = append(w.servers, running)
		w.proxies = append(w.proxies, gearmantest.NewProxy(t, running.address))
		w.inspectors = append(w.inspectors, newInspector())
	}
	w.flags = flags
	w.operator = w.startOperator(t)
	t.Cleanup(func() {
		for i := range w.proxies {
			w.audit(t, i)
		}
	})
	return w
}

// audit inspects what went through a proxy since it was last called, and returns the packets. The recording is empty afterwards.
func (w *world) audit(t testing.TB, proxy int) []wirePacket {
	t.Helper()
	inspector := w.inspectors[proxy]
	packets := inspector.read(w.proxies[proxy].Take())
	for _, fault := range inspector.faults {
		t.Errorf("on the wire, against %s: %s", fault.rule, fault.text)
	}
	inspector.faults = nil
	return packets
}

// restrict gives the strict namespace its limits. The quota controller does not run, so its part is played too.
func (w *world) restrict(t *testing.T) {
	t.Helper()
	none := corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: w.strict, Name: "none"}, Spec: corev1.ResourceQuotaSpec{Hard: none}}
	must(t, w.api.Create(t.Context(), quota))
	quota.Status = corev1.ResourceQuotaStatus{Hard: none, Used: none}
	must(t, w.api.Status().Update(t.Context(), quota))
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.strict}}
	restricted := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`))
	must(t, w.api.Patch(t.Context(), namespace, restricted))
}

// startOperator starts the program, one more if it runs already, and ends it with the test.
func (w *world) startOperator(t *testing.T, more ...string) *programs.Program {
	t.Helper()
	arguments := []string{"operator", "--kubeconfig", w.kubeconfig, "--namespace", w.namespace, "--namespace", w.strict, "--manager", manager,
		"--pages-address", "127.0.0.1:0", "--pages-url", "https://builds.example.org", "--health-address", "0", "--leader-elect=false"}
	for i, proxy := range w.proxies {
		arguments = append(arguments, "--gearman-server", fmt.Sprintf("server-%d=%s", i, proxy.Address))
	}
	log, err := os.CreateTemp(w.folder, "operator-*.log")
	must(t, err)
	must(t, log.Close())
	operator, err := programs.StartBound(log.Name(), buildProgram(t), append(append(arguments, w.flags...), more...)...)
	must(t, err)
	t.Cleanup(func() {
		_ = operator.Signal(os.Interrupt)
		operator.Stop(20 * time.Second) // a second signal ends the drain
		said, _ := os.ReadFile(operator.LogFile)
		for _, trouble := range []string{"DATA RACE", "panic:", "fatal error:"} {
			if bytes.Contains(said, []byte(trouble)) {
				t.Errorf("the operator wrote %q", trouble)
			}
		}
		if t.Failed() {
			t.Logf("%s of the operator, the end:\n%s", filepath.Base(operator.LogFile), said[max(0, len(said)-20_000):])
		}
	})
	return operator
}

// proxy is the network before the first server.
func (w *world) proxy() *gearmantest.Proxy { return w.proxies[0] }

// worlds makes one world for each flavour that is asked for, for all the cases that do it no harm.
type worlds struct {
	suite *suite
	t     *testing.T // of which they end
	mu    sync.Mutex
	made  map[*flavour]func() *world
}

// of a flavour; the first to ask waits until it is made.
func (ws *worlds) of(f *flavour) *world {
	ws.mu.Lock()
	make := ws.made[f]
	if make == nil {
		make = sync.OnceValue(func() *world { return ws.suite.newWorld(ws.t, f, 1) })
		ws.made[f] = make
	}
	ws.mu.Unlock()
	return make()
}
