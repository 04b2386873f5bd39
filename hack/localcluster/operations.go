package localcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// stopGrace is how long a component that is asked to end may take. The API server would wait for its watchers for a
// minute.
const stopGrace = 3 * time.Second

// Open returns a cluster that was started before, perhaps by another program.
func Open(name string) (*Cluster, error) {
	c, err := newCluster(name)
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(c.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no cluster %s: %w", name, err)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(content, &c.state); err != nil {
		return nil, fmt.Errorf("%s: %w", c.stateFile(), err)
	}
	c.options = c.state.Options
	return c, nil
}

// List returns the names of the clusters that were started and not taken down, whether they run or not.
func List() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(clustersFolder(), "*", "cluster.json"))
	var names []string
	for _, file := range files {
		names = append(names, filepath.Base(filepath.Dir(file)))
	}
	return names, err
}

// Down ends and removes the cluster of this name, in whatever state it is, and its folder with it. One that does not
// exist is no error.
func Down(ctx context.Context, name string) error {
	c, err := newCluster(name)
	if err != nil {
		return err
	}
	return c.Down(ctx)
}

// Down ends every process of the cluster, containers included, and removes its folder and all it holds of the machine.
func (c *Cluster) Down(ctx context.Context) error {
	if err := requireRoot(); err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return c.clean(ctx, false)
}

// Running says whether every component that was started still runs; the error names one that does not. One that a test
// stopped counts as not running.
func (c *Cluster) Running() error {
	started, err := c.processes()
	if err != nil {
		return err
	}
	if len(started) == 0 || c.state.Starting {
		return fmt.Errorf("the start of cluster %s did not finish", c.name)
	}
	for _, p := range started {
		if !p.alive() {
			return fmt.Errorf("%s of cluster %s does not run", p.Name, c.name)
		}
	}
	return nil
}

// Components are the names that Stop, Start and Restart take: etcd, kube-apiserver, kube-controller-manager,
// kube-scheduler, coredns, perhaps kwok, and for each node containerd-NODE, kubelet-NODE, kube-proxy-NODE.
func (c *Cluster) Components() ([]string, error) {
	started, err := c.processes()
	var names []string
	for _, p := range started {
		names = append(names, p.Name)
	}
	return names, err
}

// Stop ends a component and returns when it is gone.
func (c *Cluster) Stop(ctx context.Context, component string) error {
	p, err := c.recall(component)
	if err != nil {
		return err
	}
	if err := p.stop(ctx, stopGrace); err != nil {
		return fmt.Errorf("stop %s: %w", component, err)
	}
	return nil
}

// Start starts a stopped component again with the arguments it had; on a running one it does nothing. For the API server
// it returns when that is ready.
func (c *Cluster) Start(ctx context.Context, component string) error {
	p, err := c.recall(component)
	if err != nil || p.alive() {
		return err
	}
	if err := c.start(p); err != nil {
		return err
	}
	if component == "kube-apiserver" {
		defer c.disconnect()
		return c.awaitAPIServer(ctx)
	}
	return nil
}

// Restart is Stop and Start.
func (c *Cluster) Restart(ctx context.Context, component string) error {
	if err := c.Stop(ctx, component); err != nil {
		return err
	}
	return c.Start(ctx, component)
}

// Name is the cluster's name.
func (c *Cluster) Name() string { return c.name }

// Folder holds everything of the cluster; the components' logs are in logs/.
func (c *Cluster) Folder() string { return c.folder }

// AuditLog is the file the API server writes one JSON object a request to (audit.k8s.io/v1 Event), if Options.Audit was set.
func (c *Cluster) AuditLog() string { return filepath.Join(c.folder, "logs", "audit.log") }

// Kubectl is the path of a kubectl of the cluster's version.
func (c *Cluster) Kubectl() string { return c.tools.path("kubectl") }

// HostAddress is the address at which Pods and nodes reach programs on the host that listen on it, or on all addresses.
func (c *Cluster) HostAddress() string { return c.state.Slot.hostAddress().String() }

// Nodes returns the real nodes.
func (c *Cluster) Nodes() []*Node {
	var nodes []*Node
	for number := 1; number <= c.options.Nodes; number++ {
		nodes = append(nodes, c.Node(number))
	}
	return nodes
}

// Node returns real node 1, 2, ...
func (c *Cluster) Node(number int) *Node { return &Node{cluster: c, number: number} }

func (c *Cluster) saveState() error {
	content, err := json.MarshalIndent(c.state, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(c.stateFile(), append(content, '\n'), 0o644)
}

func (c *Cluster) stateFile() string { return filepath.Join(c.folder, "cluster.json") }

func (c *Cluster) lock() (unlock func(), err error) {
	return lock(filepath.Join(cacheFolder(), "locks", "cluster-"+c.name), func() {
		fmt.Fprintf(c.log, "waiting for another command that starts or stops cluster %s\n", c.name)
	})
}
