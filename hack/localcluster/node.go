package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Inside a node everything is where its programs look for it by default: each node has a mount namespace with a /var
// (on disk, in the cluster's folder) and a /run (in memory) of its own, besides a network namespace and a control group.
// Nothing of one node can meet another's, and when the namespace goes, so does every mount in it.
const (
	nodeConfiguration = "/var/lib/zuulbuild"
	nodeTools         = "/var/lib/zuulbuild/tools"
	containerdSocket  = "/run/containerd/containerd.sock"
)

// Node is one real node: a kubelet, a containerd and a kube-proxy behind a network link of their own.
type Node struct {
	cluster *Cluster
	number  int // from 1
}

// Name is the name of its Node object: node-1, node-2, ...
func (n *Node) Name() string { return fmt.Sprintf("node-%d", n.number) }

// Address is its InternalIP.
func (n *Node) Address() string { return n.cluster.state.Slot.nodeAddress(n.number).String() }

// VarFolder is where the host sees the node's /var; Pod logs are in log/pods below it.
func (n *Node) VarFolder() string { return filepath.Join(n.cluster.folder, n.Name(), "var") }

// nodeValues is what a node's configuration files are rendered from.
type nodeValues struct {
	Name, Configuration, Group, PauseImage, NodePods, AllPods, ClusterDomain, DNSServiceAddress string
}

func (n *Node) values() nodeValues {
	s := n.cluster.state.Slot
	return nodeValues{
		Name: n.Name(), Configuration: nodeConfiguration, Group: s.nodeGroup(n.number), PauseImage: pauseImage,
		NodePods: s.nodePods(n.number).String(), AllPods: s.allPods().String(),
		ClusterDomain: clusterDomain, DNSServiceAddress: dnsServiceAddress,
	}
}

// files returns the content of every configuration file, by its path below nodeConfiguration.
func (n *Node) files(ca *authority, server string) (map[string][]byte, error) {
	files := map[string][]byte{"authority.crt": ca.certificate, "resolv.conf": []byte("nameserver 127.0.0.1\n")}
	for file, name := range map[string]string{
		"containerd.toml": "containerd.toml", "cni/10-pods.conflist": "cni.conflist", "kubelet.yaml": "kubelet.yaml", "kube-proxy.yaml": "kube-proxy.yaml",
	} {
		content, err := render(name, n.values())
		if err != nil {
			return nil, err
		}
		files[file] = content
	}
	serving, err := ca.issue(subject{user: "system:node:" + n.Name(), groups: []string{"system:nodes"}, hosts: []string{n.Name(), n.Address()}})
	if err != nil {
		return nil, err
	}
	files["kubelet.crt"], files["kubelet.key"] = serving.certificate, serving.key
	for file, who := range map[string]subject{
		"kubelet.kubeconfig":    {user: "system:node:" + n.Name(), groups: []string{"system:nodes"}},
		"kube-proxy.kubeconfig": {user: "system:kube-proxy"},
	} {
		pair, err := ca.issue(who)
		if err != nil {
			return nil, err
		}
		if files[file], err = renderKubeconfig(n.cluster.name, server, who.user, ca.certificate, pair); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// prepare makes the node's namespaces, control groups and folders.
func (n *Node) prepare(ctx context.Context) error {
	s := n.cluster.state.Slot
	for _, folder := range []string{"cache", "log", "lib/containerd", "lib/kubelet", "lib/zuulbuild/tools", "tmp"} {
		if err := os.MkdirAll(filepath.Join(n.VarFolder(), folder), 0o755); err != nil {
			return err
		}
	}
	if err := os.Symlink("/run", filepath.Join(n.VarFolder(), "run")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	groups, err := controlGroups()
	if err != nil {
		return err
	}
	if err := groups.create(s.nodeGroup(n.number) + "/system"); err != nil {
		return fmt.Errorf("control group of %s: %w", n.Name(), err)
	}
	for _, handle := range []string{s.networkNamespace(n.number), s.mountNamespace(n.number)} {
		if err := os.WriteFile(handle, nil, 0o644); err != nil {
			return err
		}
	}
	// Other clusters' namespace handles are let go first: copies of them would keep those namespaces alive.
	const mounts = `
		for slot in "$3"/*/; do umount --recursive --lazy "$slot" 2>/dev/null || true; done
		mount --bind "$2" "$1/lib/zuulbuild/tools"
		mount --rbind "$1" /var
		mount -t tmpfs -o mode=755 tmpfs /run
		mount --make-rshared /
		echo 1 > /proc/sys/net/ipv4/ip_forward`
	_, err = run(ctx, "", "unshare", "--net="+s.networkNamespace(n.number), "--mount="+s.mountNamespace(n.number), "--propagation=slave",
		"/bin/sh", "-euc", mounts, "sh", n.VarFolder(), n.cluster.tools.folder, runtimeFolder)
	return err
}

// enter is the command line that runs another one inside the node. It keeps the host's /sys, which `ip netns exec` would
// replace and hide the control groups.
func (n *Node) enter(arguments ...string) []string {
	s := n.cluster.state.Slot
	return append([]string{"nsenter", "--net=" + s.networkNamespace(n.number), "--mount=" + s.mountNamespace(n.number), "--"}, arguments...)
}

// Command prepares to run a program of the host inside the node's network and mount namespaces.
func (n *Node) Command(ctx context.Context, arguments ...string) *exec.Cmd {
	line := n.enter(arguments...)
	return exec.CommandContext(ctx, line[0], line[1:]...)
}

func (n *Node) tool(name string) string {
	return filepath.Join(nodeTools, n.cluster.tools.programs[name].folder, name)
}

func (n *Node) startProgram(program string, arguments ...string) error {
	name := program + "-" + n.Name()
	return n.cluster.start(process{
		Name: name, Command: append(n.enter(n.tool(program)), arguments...),
		Group: n.cluster.state.Slot.nodeGroup(n.number) + "/system", Log: n.cluster.logFile(name),
	})
}

// startContainerd starts containerd and returns when it answers.
func (n *Node) startContainerd(ctx context.Context) error {
	if err := n.startProgram("containerd", "--config", nodeConfiguration+"/containerd.toml"); err != nil {
		return err
	}
	return n.awaitContainerd(ctx)
}

func (n *Node) awaitContainerd(ctx context.Context) error {
	return n.cluster.await(ctx, "containerd-"+n.Name(), 60*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
		output, err := n.Command(ctx, n.tool("ctr"), "--address", containerdSocket, "--connect-timeout", "1s", "version").CombinedOutput()
		if err != nil {
			return fmt.Errorf("does not answer: %w: %s", err, lastLines(string(output), 1))
		}
		return nil
	})
}

func (n *Node) startKubelet(labels map[string]string) error {
	var list []string
	for key, value := range labels {
		list = append(list, key+"="+value)
	}
	slices.Sort(list)
	arguments := []string{
		"--config=" + nodeConfiguration + "/kubelet.yaml", "--kubeconfig=" + nodeConfiguration + "/kubelet.kubeconfig",
		"--hostname-override=" + n.Name(), "--node-ip=" + n.Address(), "--root-dir=/var/lib/kubelet",
		"--node-labels=" + strings.Join(list, ","),
	}
	return n.startProgram("kubelet", append(arguments, n.cluster.options.ExtraArgs["kubelet"]...)...)
}

func (n *Node) startProxy() error {
	return n.startProgram("kube-proxy", append([]string{"--config=" + nodeConfiguration + "/kube-proxy.yaml"}, n.cluster.options.ExtraArgs["kube-proxy"]...)...)
}

// StopKubelet ends the kubelet: containers go on, nobody reports them, and after the node monitor's grace period the Node
// is not ready.
func (n *Node) StopKubelet(ctx context.Context) error {
	return n.cluster.Stop(ctx, "kubelet-"+n.Name())
}

// StartKubelet starts the kubelet again after StopKubelet; on a running one it does nothing.
func (n *Node) StartKubelet(ctx context.Context) error {
	return n.cluster.Start(ctx, "kubelet-"+n.Name())
}

// Reboot ends everything on the node at once, as a loss of power does, and starts it again.
func (n *Node) Reboot(ctx context.Context) error {
	groups, err := controlGroups()
	if err != nil {
		return err
	}
	if err := groups.kill(ctx, n.cluster.state.Slot.nodeGroup(n.number)); err != nil {
		return err
	}
	if err := errors.Join(n.cluster.Start(ctx, "containerd-"+n.Name()), n.awaitContainerd(ctx)); err != nil { // without it a kubelet ends
		return err
	}
	return errors.Join(n.cluster.Start(ctx, "kubelet-"+n.Name()), n.cluster.Start(ctx, "kube-proxy-"+n.Name()))
}

// CutLink takes the node's network link down, as a pulled cable does: everything on it goes on but reaches nobody.
func (n *Node) CutLink(ctx context.Context) error {
	_, err := run(ctx, "", "ip", "link", "set", n.cluster.state.Slot.link(n.number), "down")
	return err
}

// RestoreLink undoes CutLink.
func (n *Node) RestoreLink(ctx context.Context) error {
	_, err := run(ctx, "", "ip", "link", "set", n.cluster.state.Slot.link(n.number), "up")
	return err
}
