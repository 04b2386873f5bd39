//go:build linux

package conformance

import (
	"net/url"
	"path/filepath"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/hack/programs"
	"zuulbuild.dev/zuulbuild/replicas"
)

// longLease is for replicas that are to lead as long as the test wants them to, though the API server is slow for some seconds.
const longLease = "15s"

// drainTogether: all replicas are told to end, as by `kubectl scale --replicas=0`, while one has a build. The other one, which seems able to lead, is no
// successor for long; whoever has a build leads until that is reported.
func drainTogether(s *scene) {
	job := s.job(holds)
	s.terminate() // it was started alone
	for name, end := range map[string]func(leader, other *programs.Program){
		"at once": func(leader, other *programs.Program) {
			s.must(leader.Signal(syscall.SIGTERM))
			s.must(other.Signal(syscall.SIGTERM))
		},
		"one after the other": func(leader, other *programs.Program) {
			s.must(leader.Signal(syscall.SIGTERM))
			s.awaitLeader([]*programs.Program{other})
			s.must(other.Signal(syscall.SIGTERM))
		},
		"the other killed": func(leader, other *programs.Program) {
			other.Kill()
			s.must(leader.Signal(syscall.SIGTERM))
			_, err := leader.AwaitLine("Another replica is there to lead", patience) // it counts as alive still
			s.must(err)
		},
	} {
		electing := []string{"--leader-elect", "--leader-namespace", s.namespace, "--leader-lease", longLease}
		leader := s.startOperator(s.T, electing...)
		s.awaitLeader([]*programs.Program{leader})
		other := s.startOperator(s.T, electing...)
		s.acquainted(2)
		build := s.submit(zuulclient.Request{Job: job})
		state, _ := s.running(build)
		end(leader, other)
		s.ended(other)
		begun := time.Now()
		s.exit(state.UUID, 0)
		s.expect(s.endWithin(replicas.Duration+patience, build), zuulclient.Decided, "SUCCESS") // the other may count as alive until then
		s.ended(leader)
		s.Logf("%s: reported after %v", name, time.Since(begun))
	}
}

// twoInstallations: each has a Deployment of its own in the one namespace, and a leader.
func twoInstallations(s *scene) {
	s.terminate() // it was started without a Deployment
	for _, name := range []string{"first", "second"} {
		labels := map[string]string{"app": name}
		s.must(s.api.Create(s.Context(), &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name},
			Spec: appsv1.DeploymentSpec{
				Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: labels},
					Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "operator", Image: "example.org/image"}}},
				},
			},
		}))
		s.awaitLeader([]*programs.Program{s.startOperator(s.T, "--leader-elect", "--leader-namespace", s.namespace, "--leader-deployment", name)})
	}
}

// leaderDisconnected: the leader loses the Gearman server and the other replica does not. That one leads then.
func leaderDisconnected(s *scene) {
	job := s.job(holds)
	s.terminate() // it was started alone
	electing := []string{"--leader-elect", "--leader-namespace", s.namespace}
	s.awaitLeader([]*programs.Program{s.startOperator(s.T, electing...)})
	proxies := s.proxies
	s.proxies = []*gearmantest.Proxy{gearmantest.NewProxy(s.T, s.servers[0].address)} // a way of its own
	other := s.startOperator(s.T, electing...)
	s.proxies = proxies
	s.eventually("the functions of both", func() bool { return s.functions()["build:"+job].Workers >= 2 })
	s.proxy().Refuse(true)
	s.proxy().Cut()
	cut := time.Now()
	build := s.submit(zuulclient.Request{Job: job})
	s.awaitLeader([]*programs.Program{other})
	state, _ := s.running(build)
	s.Logf("a build ran %v after the leader had lost the server", time.Since(cut))
	s.exit(state.UUID, 0)
	s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
}

// acquainted waits until so many replicas know each other: each has renewed its Lease since it was seen, and looked around, twice.
func (s *scene) acquainted(replicas int) {
	s.Helper()
	versions := map[string]map[string]bool{}
	s.eventually("replicas that know each other", func() bool {
		leases := coordinationv1.LeaseList{}
		s.must(s.api.List(s.Context(), &leases, client.InNamespace(s.namespace), client.HasLabels{v1alpha1.LabelReplica}))
		known := 0
		for _, lease := range leases.Items {
			if versions[lease.Name] == nil {
				versions[lease.Name] = map[string]bool{}
			}
			if versions[lease.Name][lease.ResourceVersion] = true; len(versions[lease.Name]) > 2 {
				known++
			}
		}
		return known >= replicas
	})
}

// reflectorPause is how long client-go's caches may wait before they try an API server again that was away.
const reflectorPause = time.Minute

// cutOff: the leader loses the API server, but not Gearman. Another replica leads, and every stop: of its builds is answered as one of a build that is
// known, although the old leader offers that function too. When that one is back it reports the build it had.
func cutOff(s *scene) {
	job := s.job(holds)
	s.terminate() // it was started alone
	electing := []string{"--leader-elect", "--leader-namespace", s.namespace}
	whole := s.kubeconfig
	network, kubeconfig := s.proxyAPI()
	s.suite = &suite{api: s.api, kubelet: s.kubelet, kubeconfig: kubeconfig} // not that of other worlds
	old := s.startOperator(s.T, electing...)
	s.kubeconfig = whole
	s.awaitLeader([]*programs.Program{old})
	next := s.startOperator(s.T, electing...)
	s.acquainted(2)
	build := s.submit(zuulclient.Request{Job: job})
	state, _ := s.running(build)

	network.Refuse(true)
	network.Cut()
	s.awaitLeader([]*programs.Program{next})
	for _, said := range []string{"This replica leads no more", "commands are left to others"} {
		_, err := old.AwaitLine(said, patience)
		s.must(err)
	}
	rounds := 10
	if s.flavour.geard {
		rounds = 3 // the other one stops the builds of a replica that is cut off for 20 seconds or more
	}
	for range rounds {
		stopped := s.submit(zuulclient.Request{Job: job})
		s.running(stopped)
		s.cancel(stopped)
		s.expect(s.end(stopped), zuulclient.Canceled, "ABORTED")
	}
	network.Refuse(false)
	s.exit(state.UUID, 0)
	s.expect(s.endWithin(reflectorPause+patience, build), zuulclient.Decided, "SUCCESS")
}

// proxyAPI is a way to the API server that can fail, and the access of a program that goes it.
func (s *scene) proxyAPI() (network *gearmantest.Proxy, kubeconfig string) {
	s.Helper()
	access, err := clientcmd.LoadFromFile(s.kubeconfig)
	s.must(err)
	for _, cluster := range access.Clusters {
		server, err := url.Parse(cluster.Server)
		s.must(err)
		network = gearmantest.NewProxy(s.T, server.Host)
		server.Host = network.Address
		cluster.Server = server.String()
	}
	kubeconfig = filepath.Join(s.TempDir(), "kubeconfig")
	s.must(clientcmd.WriteToFile(*access, kubeconfig))
	return network, kubeconfig
}
