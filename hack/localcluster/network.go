package localcluster

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Services have the same addresses in every cluster: kube-proxy's rules live in each node's network namespace.
const (
	serviceRange      = "10.96.0.0/16"
	apiServiceAddress = "10.96.0.1"
	dnsServiceAddress = "10.96.0.10"
	clusterDomain     = "cluster.local"
)

// slot is a number that makes everything machine-wide about a cluster its own: address range, interface names, control
// group, runtime folder.
type slot int

// slotCount keeps the address ranges between 10.64.0.0/16 and 10.95.0.0/16, below the services' range.
const slotCount = 32

func (s slot) addresses(third, fourth int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(64 + s), byte(third), byte(fourth)})
}

// network is the whole range of the cluster: nodes in its first /24, Pods in its upper half.
func (s slot) network() netip.Prefix { return netip.PrefixFrom(s.addresses(0, 0), 16) }

// hostAddress is the address of the host on the cluster's bridge; the API server and DNS listen there.
func (s slot) hostAddress() netip.Addr { return s.addresses(0, 1) }

// nodeAddress is the address of node 1, 2, ...
func (s slot) nodeAddress(node int) netip.Addr { return s.addresses(0, 10+node) }

func (s slot) allPods() netip.Prefix          { return netip.PrefixFrom(s.addresses(128, 0), 17) }
func (s slot) nodePods(node int) netip.Prefix { return netip.PrefixFrom(s.addresses(128+node, 0), 24) }
func (s slot) bridge() string                 { return fmt.Sprintf("zb%d", s) }
func (s slot) link(node int) string           { return fmt.Sprintf("zb%dn%d", s, node) }
func (s slot) group() string                  { return fmt.Sprintf("/zuulbuild-%d", s) }
func (s slot) nodeGroup(node int) string      { return fmt.Sprintf("%s/node-%d", s.group(), node) }
func (s slot) folder() string                 { return filepath.Join(runtimeFolder, strconv.Itoa(int(s))) }
func (s slot) networkNamespace(n int) string {
	return filepath.Join(s.folder(), fmt.Sprintf("node-%d.net", n))
}
func (s slot) mountNamespace(node int) string {
	return filepath.Join(s.folder(), fmt.Sprintf("node-%d.mnt", node))
}
func (s slot) ownerFile() string { return s.folder() + ".owner" }

// claimSlot takes the lowest slot that no other cluster owns and whose addresses the host does not use already.
func claimSlot(ctx context.Context, clusterFolder string) (slot, error) {
	unlock, err := lock(filepath.Join(runtimeFolder, "slots.lock"), nil)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if err := releaseAbandoned(ctx); err != nil {
		return 0, err
	}
	table, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return 0, err
	}
	routes, err := parseRoutes(string(table))
	if err != nil {
		return 0, err
	}
	for s := slot(0); s < slotCount; s++ {
		owner, err := s.owner()
		if err != nil {
			return 0, err
		}
		if owner != "" || overlapsAny(s.network(), routes) {
			continue
		}
		return s, writeFile(s.ownerFile(), []byte(clusterFolder+"\n"), 0o644)
	}
	return 0, fmt.Errorf("no free address range: all of %s to %s are used by clusters (see %s) or by the host's routes",
		slot(0).network(), slot(slotCount-1).network(), runtimeFolder)
}

// releaseAbandoned frees the slots of clusters whose folders were deleted without taking them down.
func releaseAbandoned(ctx context.Context) error {
	for s := slot(0); s < slotCount; s++ {
		owner, err := s.owner()
		if err != nil {
			return err
		}
		if owner == "" {
			continue
		}
		if _, err := os.Stat(owner); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := s.release(ctx); err != nil {
			return fmt.Errorf("free what is left of the cluster in %s, which was deleted: %w", owner, err)
		}
	}
	return nil
}

// owner is the folder of the cluster that claimed the slot, empty for none.
func (s slot) owner() (string, error) {
	content, err := os.ReadFile(s.ownerFile())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(content)), err
}

// ownedSlots lists the slots a cluster's folder holds; more than one only after starts that were cut off.
func ownedSlots(clusterFolder string) ([]slot, error) {
	var owned []slot
	for s := slot(0); s < slotCount; s++ {
		owner, err := s.owner()
		if err != nil {
			return nil, err
		}
		if owner == clusterFolder {
			owned = append(owned, s)
		}
	}
	return owned, nil
}

// parseRoutes reads the destinations in /proc/net/route, without default routes. Addresses there are the bytes of the
// network order printed as one number of the machine's order.
func parseRoutes(table string) ([]netip.Prefix, error) {
	var routes []netip.Prefix
	for number, line := range strings.Split(strings.TrimSpace(table), "\n") {
		fields := strings.Fields(line)
		if number == 0 || len(fields) < 8 {
			continue
		}
		destination, err := parseRouteAddress(fields[1])
		if err != nil {
			return nil, err
		}
		mask, err := parseRouteAddress(fields[7])
		if err != nil {
			return nil, err
		}
		ones, _ := net.IPMask(mask[:]).Size()
		if ones > 0 {
			routes = append(routes, netip.PrefixFrom(netip.AddrFrom4(destination), ones))
		}
	}
	return routes, nil
}

func parseRouteAddress(field string) (address [4]byte, err error) {
	bytes, err := hex.DecodeString(field)
	if err != nil || len(bytes) != 4 {
		return address, fmt.Errorf("/proc/net/route: address %q is not 8 hexadecimal digits", field)
	}
	binary.NativeEndian.PutUint32(address[:], binary.BigEndian.Uint32(bytes))
	return address, nil
}

func overlapsAny(prefix netip.Prefix, others []netip.Prefix) bool {
	for _, other := range others {
		if prefix.Overlaps(other) {
			return true
		}
	}
	return false
}

// hostLinks is the `ip -batch` input for the host's side: a bridge with the host's address on it, and for each node a
// pair of interfaces, one end on the bridge, the other in the node's namespace, and a route to its Pods.
func hostLinks(s slot, nodes int) string {
	var batch strings.Builder
	// The address of a bridge follows its ports' unless it is set, and neighbours would go on using the old one.
	host := s.hostAddress().As4()
	fmt.Fprintf(&batch, "link add %s address 0a:58:%s type bridge\n", s.bridge(), colons(host))
	fmt.Fprintf(&batch, "addr add %s/24 dev %s\nlink set %s up\n", s.hostAddress(), s.bridge(), s.bridge())
	for node := 1; node <= nodes; node++ {
		fmt.Fprintf(&batch, "link add %s type veth peer name eth0 netns %s\n", s.link(node), s.networkNamespace(node))
		fmt.Fprintf(&batch, "link set %s master %s up\n", s.link(node), s.bridge())
		fmt.Fprintf(&batch, "route add %s via %s\n", s.nodePods(node), s.nodeAddress(node))
	}
	return batch.String()
}

// nodeLinks is the `ip -batch` input for inside a node's namespace. Other nodes' Pods are reached directly, so the host
// forwards nothing; the default route leads to the host and gives packets to services somewhere to go before kube-proxy's
// rules rewrite them.
func nodeLinks(s slot, node, nodes int) string {
	var batch strings.Builder
	fmt.Fprintf(&batch, "link set lo up\naddr add %s/24 dev eth0\nlink set eth0 up\nroute add default via %s\n", s.nodeAddress(node), s.hostAddress())
	for other := 1; other <= nodes; other++ {
		if other != node {
			fmt.Fprintf(&batch, "route add %s via %s\n", s.nodePods(other), s.nodeAddress(other))
		}
	}
	return batch.String()
}

func colons(address [4]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x", address[0], address[1], address[2], address[3])
}

// run runs a short command with this input and returns its output; the error says what it printed.
func run(ctx context.Context, input string, name string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, name, arguments...)
	command.Stdin = strings.NewReader(input)
	output, err := command.CombinedOutput()
	if err != nil {
		return string(output), fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, strings.TrimSpace(lastLines(string(output), 10)))
	}
	return string(output), nil
}
