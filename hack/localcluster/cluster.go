//go:build linux

// Package localcluster runs real Kubernetes clusters on one bare Linux machine, for development and end-to-end tests:
// etcd, the control plane, and nodes that each are a kubelet, a containerd and a kube-proxy in network and mount
// namespaces and a control group of their own. It needs root, Go and Debian packages, and neither Docker nor a container
// registry: programs are built from Go modules, and images are put on the nodes from archives.
//
// Clusters of different names run side by side. Everything about one is in Folder, and what it holds of the machine is
// found again from there, so that any later program can stop it, or start over after it was killed.
package localcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DefaultName is the cluster that is meant when none is named.
const DefaultName = "zuulbuild"

// NodeLabel is the label that makes a node serve a Zuul node name.
const NodeLabel = "zuulbuild.dev/node"

// Options says what a cluster is like. The zero value is a good one.
type Options struct {
	Name string `json:"name"` // default DefaultName
	// Nodes is the number of real nodes, named node-1, node-2, ...; default 2, at most 100.
	Nodes int `json:"nodes"`
	// KwokNodes is the number of simulated nodes, named kwok-1, ...; see KwokTaint.
	KwokNodes int `json:"kwokNodes"`
	// Audit writes every request to AuditLog: of changes to Pods and to the status of builds with what
	// was sent and answered, of others without.
	Audit bool `json:"audit"`
	// NodeLabels are labels by node name. A node that is not named gets NodeLabel: node-1 "bookworm", node-2 "trusty".
	NodeLabels map[string]map[string]string `json:"nodeLabels,omitempty"`
	// ExtraArgs are command line arguments by program ("kube-apiserver": {"--v=4"}); they come after the package's own, so
	// that they win.
	ExtraArgs map[string][]string `json:"extraArgs,omitempty"`
	// Log takes a line for each step; default none.
	Log io.Writer `json:"-"`
}

// state is what is remembered of a running cluster.
type state struct {
	Slot          slot    `json:"slot"`
	APIServerPort int     `json:"apiServerPort"`
	DNSPort       int     `json:"dnsPort"`
	EtcdPort      int     `json:"etcdPort"`
	EtcdPeerPort  int     `json:"etcdPeerPort"`
	Options       Options `json:"options"`
	// Starting is true until Up has succeeded: a cluster whose start was cut off is not one that runs.
	Starting bool `json:"starting"`
}

// Cluster is a handle on a running cluster. It is good in any program as long as the cluster runs, and safe for
// concurrent use.
type Cluster struct {
	name    string
	folder  string
	tools   *toolset
	options Options
	state   state
	log     io.Writer
}

func (o Options) withDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Nodes < 0 || o.Nodes > 100 || o.KwokNodes < 0 {
		return o, fmt.Errorf("cluster %s: %d nodes and %d kwok nodes asked for, want 1 to 100 and 0 or more", o.Name, o.Nodes, o.KwokNodes)
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	labels := map[string]map[string]string{}
	for node := 1; node <= o.Nodes; node++ {
		labels[fmt.Sprintf("node-%d", node)] = nil
	}
	for node, set := range o.NodeLabels {
		if _, found := labels[node]; !found {
			return o, fmt.Errorf("cluster %s: labels for node %q, which it does not have", o.Name, node)
		}
		labels[node] = maps.Clone(set)
	}
	for node, value := range map[string]string{"node-1": "bookworm", "node-2": "trusty"} {
		if set, found := labels[node]; found && set == nil {
			labels[node] = map[string]string{NodeLabel: value}
		}
	}
	o.NodeLabels = labels
	return o, checkName(o.Name)
}

func newCluster(name string) (*Cluster, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	tools, err := newToolset()
	return &Cluster{name: name, folder: filepath.Join(clustersFolder(), name), tools: tools, log: io.Discard}, err
}

// Ensure returns the running cluster of that name, or starts it with Up if it does not run. One that runs with other
// options is an error.
func Ensure(ctx context.Context, options Options) (*Cluster, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	c, err := Open(options.Name)
	if err != nil || c.Running() != nil {
		return Up(ctx, options)
	}
	same, err := options.equal(c.options)
	if err != nil {
		return nil, err
	}
	if !same {
		return nil, fmt.Errorf("cluster %s runs already, with other options; take it down first", options.Name)
	}
	fmt.Fprintf(options.Log, "cluster %s runs already\n", c.name)
	return c, nil
}

// equal compares what is remembered of options, both with defaults.
func (o Options) equal(other Options) (bool, error) {
	own, err := json.Marshal(o)
	if err != nil {
		return false, err
	}
	others, err := json.Marshal(other)
	return bytes.Equal(own, others), err
}

// Up starts a cluster and returns when it is of use: API server and nodes ready, service accounts there, names resolving.
// Whatever was left of one of the same name, running or not, is ended and removed first. Missing programs are built and
// missing Debian packages installed. When it fails, it removes what it started, and the logs stay in Folder.
func Up(ctx context.Context, options Options) (*Cluster, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := requireRoot(); err != nil {
		return nil, err
	}
	c, err := newCluster(options.Name)
	if err != nil {
		return nil, err
	}
	c.options, c.log = options, &synchronized{writer: options.Log}
	if err := installPackages(ctx, c.log, clusterPackages); err != nil {
		return nil, err
	}
	needed := clusterBinaries
	if options.KwokNodes > 0 {
		needed = append(append([]string{}, needed...), kwokBinaries...)
	}
	if err := c.tools.ensure(ctx, c.log, needed...); err != nil {
		return nil, err
	}
	unlock, err := c.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := c.clean(ctx, false); err != nil {
		return nil, fmt.Errorf("clean up after an earlier cluster %s: %w", c.name, err)
	}
	defer c.disconnect()
	if err := c.bringUp(ctx); err != nil {
		err = fmt.Errorf("cluster %s: %w", c.name, err)
		return nil, errors.Join(err, c.clean(ctx, true))
	}
	return c, nil
}

// bringUp does the work of Up on clean ground.
func (c *Cluster) bringUp(ctx context.Context) (err error) {
	start := time.Now()
	step := func(what string) {
		fmt.Fprintf(c.log, "cluster %s: %s (%.1f s)\n", c.name, what, time.Since(start).Seconds())
	}
	if err := c.layOut(ctx); err != nil {
		return err
	}
	step("network and credentials are laid out")
	err = together(ctx, c.startAPIServer, c.startContainerRuntimes)
	if err != nil {
		return err
	}
	step("API server and container runtimes are ready")
	if err := c.startControllers(); err != nil {
		return err
	}
	for _, node := range c.Nodes() {
		if err := node.startKubelet(c.options.NodeLabels[node.Name()]); err != nil {
			return err
		}
		if err := node.startProxy(); err != nil {
			return err
		}
	}
	if err := together(ctx, c.startDNS, c.startKwok); err != nil {
		return err
	}
	if err := together(ctx, c.awaitNodes, c.awaitKwokNodes, c.awaitServiceAccount, c.awaitDNS); err != nil {
		return err
	}
	c.state.Starting = false
	if err := c.saveState(); err != nil {
		return err
	}
	step("ready")
	return nil
}

// layOut claims what the cluster needs of the machine and writes every file that its programs read.
func (c *Cluster) layOut(ctx context.Context) (err error) {
	if err := os.MkdirAll(filepath.Join(c.folder, "logs"), 0o755); err != nil {
		return err
	}
	c.state.Options = c.options
	if c.state.Slot, err = claimSlot(ctx, c.folder); err != nil {
		return err
	}
	s := c.state.Slot
	groups, err := controlGroups()
	if err != nil {
		return err
	}
	if err := errors.Join(bindToItself(s.folder()), groups.create(s.group()+"/control-plane")); err != nil {
		return err
	}
	for _, node := range c.Nodes() {
		if err := node.prepare(ctx); err != nil {
			return fmt.Errorf("%s: %w", node.Name(), err)
		}
	}
	if err := c.connect(ctx); err != nil {
		return err
	}
	if err := c.state.choosePorts(); err != nil {
		return err
	}
	c.state.Starting = true
	if err := c.saveState(); err != nil {
		return err
	}
	return c.writeFiles()
}

// writeFiles writes the credentials and configuration of control plane and nodes.
func (c *Cluster) writeFiles() error {
	ca, err := newAuthority(c.name)
	if err != nil {
		return err
	}
	if err := c.writeCredentials(ca); err != nil {
		return err
	}
	for _, node := range c.Nodes() {
		files, err := node.files(ca, c.state.server())
		if err != nil {
			return err
		}
		for name, content := range files {
			if err := writeFile(filepath.Join(node.VarFolder(), "lib/zuulbuild", name), content, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// connect makes the links between host and nodes.
func (c *Cluster) connect(ctx context.Context) error {
	s := c.state.Slot
	if _, err := run(ctx, hostLinks(s, c.options.Nodes), "ip", "-batch", "-"); err != nil {
		return err
	}
	for _, node := range c.Nodes() {
		inside := node.enter("ip", "-batch", "-")
		if _, err := run(ctx, nodeLinks(s, node.number, c.options.Nodes), inside[0], inside[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startContainerRuntimes(ctx context.Context) error {
	archives, err := c.writeStockImages(ctx)
	if err != nil {
		return err
	}
	var starts []func(context.Context) error
	for _, node := range c.Nodes() {
		starts = append(starts, func(ctx context.Context) error {
			if err := node.startContainerd(ctx); err != nil {
				return err
			}
			for _, archive := range archives {
				if err := node.importImage(ctx, archive); err != nil {
					return c.failed("containerd-"+node.Name(), err)
				}
			}
			return nil
		})
	}
	return together(ctx, starts...)
}

// awaitNodes waits until every node says it is ready and may be scheduled on.
func (c *Cluster) awaitNodes(ctx context.Context) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	for _, node := range c.Nodes() {
		err := c.await(ctx, "kubelet-"+node.Name(), 90*time.Second, 200*time.Millisecond, func(ctx context.Context) error {
			object, err := client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{})
			if err != nil {
				return err
			}
			return nodeReady(object)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// nodeReady says why Pods without tolerations would not run on a node; nil if they would.
func nodeReady(node *corev1.Node) error {
	for _, taint := range node.Spec.Taints {
		if taint.Effect == corev1.TaintEffectNoSchedule || taint.Effect == corev1.TaintEffectNoExecute {
			return fmt.Errorf("node %s is tainted %s", node.Name, taint.Key)
		}
	}
	return conditionsReady(node)
}

func conditionsReady(node *corev1.Node) error {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			if condition.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("node %s is not ready: %s", node.Name, condition.Message)
		}
	}
	return fmt.Errorf("node %s has not reported yet", node.Name)
}

// awaitServiceAccount waits for the account that Pods in namespace default run under; without it they are refused.
func (c *Cluster) awaitServiceAccount(ctx context.Context) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.await(ctx, "kube-controller-manager", 60*time.Second, 200*time.Millisecond, func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// synchronized lets concurrent steps share a writer.
type synchronized struct {
	mutex  sync.Mutex
	writer io.Writer
}

func (s *synchronized) Write(p []byte) (int, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.writer.Write(p)
}

// together runs functions at the same time and waits for all. The first failure cancels the others, and is what is
// returned: the others' are its consequences.
func together(ctx context.Context, functions ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for _, function := range functions {
		group.Go(func() {
			if err := function(ctx); err != nil {
				cancel(err)
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}
