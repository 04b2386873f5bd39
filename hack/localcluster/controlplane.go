package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// The profile of a cluster that is measured: the defaults (20 requests a second) would throttle the controllers, not the
// API server. One replica needs no election, and nobody scrapes these two.
var tunedClient = []string{"--kube-api-qps=5000", "--kube-api-burst=10000", "--leader-elect=false", "--secure-port=0"}

// administrators is the group that may do everything.
const administrators = "system:masters"

func (c *Cluster) controlPlaneFile(name string) string {
	return filepath.Join(c.folder, "control-plane", name)
}

// writeCredentials issues what the control plane's programs and the administrator identify themselves with.
func (c *Cluster) writeCredentials(ca *authority) error {
	key, err := newServiceAccountKey()
	if err != nil {
		return err
	}
	files := map[string][]byte{"authority.crt": ca.certificate, "authority.key": ca.key, "service-accounts.key": key}
	for file, who := range map[string]subject{
		"kube-apiserver": {user: "kube-apiserver", hosts: []string{
			c.state.Slot.hostAddress().String(), apiServiceAddress, "localhost",
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + clusterDomain}},
		"kubelet-client": {user: "kube-apiserver-kubelet-client", groups: []string{administrators}},
	} {
		pair, err := ca.issue(who)
		if err != nil {
			return err
		}
		files[file+".crt"], files[file+".key"] = pair.certificate, pair.key
	}
	for file, who := range map[string]subject{
		"kube-controller-manager.kubeconfig": {user: "system:kube-controller-manager"},
		"kube-scheduler.kubeconfig":          {user: "system:kube-scheduler"},
		"coredns.kubeconfig":                 {user: "coredns", groups: []string{administrators}},
		"kwok.kubeconfig":                    {user: "kwok", groups: []string{administrators}},
		"../kubeconfig":                      {user: "admin", groups: []string{administrators}},
	} {
		pair, err := ca.issue(who)
		if err != nil {
			return err
		}
		if files[file], err = renderKubeconfig(c.name, c.state.server(), who.user, ca.certificate, pair); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := writeFile(c.controlPlaneFile(name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startControlPlaneProgram(name string, arguments ...string) error {
	return c.start(process{
		Name: name, Command: append(append([]string{c.tools.path(name)}, arguments...), c.options.ExtraArgs[name]...),
		Group: c.state.Slot.group() + "/control-plane", Log: c.logFile(name),
	})
}

// startAPIServer starts etcd and the API server and returns when the latter is ready.
func (c *Cluster) startAPIServer(ctx context.Context) error {
	etcd := fmt.Sprintf("http://127.0.0.1:%d", c.state.EtcdPort)
	peer := fmt.Sprintf("http://127.0.0.1:%d", c.state.EtcdPeerPort)
	// A cluster never outlives a crash of the machine, so its data need not either.
	err := c.startControlPlaneProgram("etcd", "--name=etcd", "--data-dir="+c.controlPlaneFile("etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=etcd="+peer,
		"--quota-backend-bytes="+strconv.Itoa(4<<30), "--log-level=warn")
	if err != nil {
		return err
	}
	if err := c.await(ctx, "etcd", 30*time.Second, 50*time.Millisecond, func(ctx context.Context) error { return getOK(ctx, etcd+"/health") }); err != nil {
		return err
	}
	arguments, err := c.apiServerArguments(etcd)
	if err != nil {
		return err
	}
	if err := c.startControlPlaneProgram("kube-apiserver", arguments...); err != nil {
		return err
	}
	return c.awaitAPIServer(ctx)
}

func (c *Cluster) apiServerArguments(etcd string) ([]string, error) {
	address := c.state.Slot.hostAddress().String()
	file := c.controlPlaneFile
	arguments := []string{
		"--etcd-servers=" + etcd,
		"--bind-address=" + address, "--advertise-address=" + address, "--secure-port=" + strconv.Itoa(c.state.APIServerPort),
		"--tls-cert-file=" + file("kube-apiserver.crt"), "--tls-private-key-file=" + file("kube-apiserver.key"),
		"--client-ca-file=" + file("authority.crt"), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=" + serviceRange,
		"--service-account-issuer=https://kubernetes.default.svc." + clusterDomain,
		"--service-account-key-file=" + file("service-accounts.key"), "--service-account-signing-key-file=" + file("service-accounts.key"),
		// Without an address type the kubelets' names would be looked up in the host's DNS.
		"--kubelet-preferred-address-types=InternalIP", "--kubelet-certificate-authority=" + file("authority.crt"),
		"--kubelet-client-certificate=" + file("kubelet-client.crt"), "--kubelet-client-key=" + file("kubelet-client.key"),
		// The host has no kube-proxy: webhooks are called at their Pods' addresses.
		"--enable-aggregator-routing=true",
		"--allow-privileged=true", "--profiling=false",
	}
	if c.options.Audit {
		policy, err := render("audit-policy.yaml", nil)
		if err != nil {
			return nil, err
		}
		if err := writeFile(file("audit-policy.yaml"), policy, 0o644); err != nil {
			return nil, err
		}
		// One file that is never rotated: tests count what is in it.
		arguments = append(arguments, "--audit-policy-file="+file("audit-policy.yaml"), "--audit-log-path="+c.AuditLog(), "--audit-log-maxsize=100000")
	}
	return arguments, nil
}

// awaitAPIServer waits for /readyz.
func (c *Cluster) awaitAPIServer(ctx context.Context) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.await(ctx, "kube-apiserver", 120*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// startControllers starts what needs nothing but the API server.
func (c *Cluster) startControllers() error {
	file := c.controlPlaneFile
	// Without credentials of their own for each controller, the node controller may not lift the not-ready taint.
	err := c.startControlPlaneProgram("kube-controller-manager", append([]string{
		"--kubeconfig=" + file("kube-controller-manager.kubeconfig"), "--use-service-account-credentials=true",
		"--service-account-private-key-file=" + file("service-accounts.key"), "--root-ca-file=" + file("authority.crt"),
		"--cluster-signing-cert-file=" + file("authority.crt"), "--cluster-signing-key-file=" + file("authority.key"),
		"--cluster-name=" + c.name, "--allocate-node-cidrs=false",
		"--flex-volume-plugin-dir=" + file("volume-plugins"), // it makes this folder, by default in the host's /usr
	}, tunedClient...)...)
	if err != nil {
		return err
	}
	return c.startControlPlaneProgram("kube-scheduler", append([]string{"--kubeconfig=" + file("kube-scheduler.kubeconfig")}, tunedClient...)...)
}

func (c *Cluster) client() (*kubernetes.Clientset, error) {
	config, err := c.RESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// disconnect closes the idle connections of clients that had this cluster's RESTConfig; each holds goroutines. client-go
// gives clients of equal configurations the same transport.
func (c *Cluster) disconnect() {
	config, err := c.RESTConfig()
	if err != nil {
		return // there never was a client
	}
	if transport, err := rest.TransportFor(config); err == nil {
		utilnet.CloseIdleConnectionsFor(transport)
	}
}

// await tries until check succeeds, the component ends, or the time is up; either failure shows the end of its log.
func (c *Cluster) await(ctx context.Context, component string, timeout, interval time.Duration, check func(context.Context) error) error {
	p, err := c.recall(component)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var last error
	err = poll(limited, interval, func() (bool, error) {
		attempt, done := context.WithTimeout(limited, 5*time.Second)
		defer done()
		if last = check(attempt); last == nil {
			return true, nil
		}
		if !p.alive() {
			return false, errors.New("ended unexpectedly")
		}
		return false, nil
	})
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", component, ctx.Err())
	case errors.Is(err, context.DeadlineExceeded):
		return c.failed(component, fmt.Errorf("not ready after %s: %w", timeout, last))
	default:
		return c.failed(component, err)
	}
}

func getOK(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Close = true // leaves no idle connection, and so no goroutine, behind
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if body, _ := io.ReadAll(io.LimitReader(response.Body, 1000)); response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, response.Status, body)
	}
	return nil
}

func (s *state) server() string {
	return fmt.Sprintf("https://%s:%d", s.Slot.hostAddress(), s.APIServerPort)
}

// choosePorts finds ports that are free now; between here and their use somebody else could take one, which then shows
// in that component's log. All are listened at until the last is found, so that no two are the same.
func (s *state) choosePorts() error {
	host := s.Slot.hostAddress().String()
	for _, port := range []struct {
		address string
		number  *int
	}{{host, &s.APIServerPort}, {host, &s.DNSPort}, {"127.0.0.1", &s.EtcdPort}, {"127.0.0.1", &s.EtcdPeerPort}} {
		listener, err := net.Listen("tcp", net.JoinHostPort(port.address, "0"))
		if err != nil {
			return fmt.Errorf("find a free port: %w", err)
		}
		defer listener.Close()
		*port.number = listener.Addr().(*net.TCPAddr).Port
	}
	return nil
}
