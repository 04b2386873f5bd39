package localcluster

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{})

func TestSlotsDoNotMeet(t *testing.T) {
	services := netip.MustParsePrefix(serviceRange)
	for s := slot(0); s < slotCount; s++ {
		if s.network().Overlaps(services) {
			t.Errorf("slot %d: %s overlaps the services' %s", s, s.network(), services)
		}
		if s > 0 && s.network().Overlaps((s - 1).network()) {
			t.Errorf("slots %d and %d overlap", s-1, s)
		}
		nodes := netip.PrefixFrom(s.hostAddress(), 24).Masked()
		for node := 1; node <= 100; node++ {
			pods := s.nodePods(node)
			if !s.allPods().Contains(pods.Addr()) || pods.Overlaps(s.nodePods(node+1)) || pods.Overlaps(nodes) || !nodes.Contains(s.nodeAddress(node)) {
				t.Fatalf("slot %d, node %d: address %s in %s, Pods %s in %s", s, node, s.nodeAddress(node), nodes, pods, s.allPods())
			}
			if name := s.link(node); len(name) > 15 {
				t.Fatalf("interface name %q is longer than the kernel's 15", name)
			}
		}
	}
}

func TestSlotOwnsLinks(t *testing.T) {
	tests := map[string]bool{"zb1": true, "zb1n1": true, "zb1n12": true, "zb10": false, "zb10n1": false, "zb": false, "eth0": false, "zb2n1": false}
	for name, want := range tests {
		if got := slot(1).owns(name); got != want {
			t.Errorf("slot 1 owns %s: %t, want %t", name, got, want)
		}
	}
}

func TestParseRoutes(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the table below is from a little-endian machine")
	}
	const table = `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	01000A0A	0003	0	0	0	00000000	0	0	0
eth0	0000460A	00000000	0001	0	0	0	0000FFFF	0	0	0
zb0	0000400A	00000000	0001	0	0	0	00FFFFFF	0	0	0
`
	got, err := parseRoutes(table)
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.70.0.0/16"), netip.MustParsePrefix("10.64.0.0/24")}
	if diff := cmp.Diff(want, got, comparePrefixes); diff != "" {
		t.Errorf("routes differ (-want +got):\n%s", diff)
	}
	for s, taken := range map[slot]bool{0: true, 1: false, 6: true} {
		if overlapsAny(s.network(), got) != taken {
			t.Errorf("slot %d taken: %t, want %t", s, !taken, taken)
		}
	}
	if _, err := parseRoutes("header\neth0\tzz\t0\t0\t0\t0\t0\t00000000\n"); err == nil {
		t.Error("no error for an address that is none")
	}
}

func TestLinks(t *testing.T) {
	host := `link add zb3 address 0a:58:0a:43:00:01 type bridge
addr add 10.67.0.1/24 dev zb3
link set zb3 up
link add zb3n1 type veth peer name eth0 netns /run/zuulbuild/3/node-1.net
link set zb3n1 master zb3 up
route add 10.67.129.0/24 via 10.67.0.11
link add zb3n2 type veth peer name eth0 netns /run/zuulbuild/3/node-2.net
link set zb3n2 master zb3 up
route add 10.67.130.0/24 via 10.67.0.12
`
	if diff := cmp.Diff(host, hostLinks(3, 2)); diff != "" {
		t.Errorf("host's side differs (-want +got):\n%s", diff)
	}
	node := `link set lo up
addr add 10.67.0.12/24 dev eth0
link set eth0 up
route add default via 10.67.0.1
route add 10.67.129.0/24 via 10.67.0.11
`
	if diff := cmp.Diff(node, nodeLinks(3, 2, 2)); diff != "" {
		t.Errorf("node's side differs (-want +got):\n%s", diff)
	}
}

func TestParseHierarchies(t *testing.T) {
	const (
		legacyPids    = "30 25 0:27 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids\n"
		legacyCPU     = "29 25 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
		beside        = "31 25 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
		unified       = "31 25 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
		elsewhere     = "32 25 0:29 / /mnt/cgroup rw - cgroup cgroup rw,cpu\n"
		folderInPlace = "25 1 0:22 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw\n"
	)
	tests := map[string]struct {
		table string
		want  hierarchies
	}{
		"version 1": {folderInPlace + legacyCPU + legacyPids, hierarchies{version: 1, tracking: "/sys/fs/cgroup/pids",
			mounts: []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/pids"}, all: []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/pids"}}},
		"version 1 with an empty version 2": {legacyCPU + beside, hierarchies{version: 1, tracking: "/sys/fs/cgroup/cpu",
			mounts: []string{"/sys/fs/cgroup/cpu"}, all: []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"}}},
		"version 2": {unified, hierarchies{version: 2, tracking: "/sys/fs/cgroup", mounts: []string{"/sys/fs/cgroup"}, all: []string{"/sys/fs/cgroup"}}},
		"none":      {elsewhere, hierarchies{version: 2}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := parseHierarchies(test.table)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(hierarchies{})); diff != "" {
				t.Errorf("hierarchies differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseMountsUnescapes(t *testing.T) {
	got := parseMounts(`40 1 0:30 / /a\040b\134c rw - tmpfs tmpfs rw` + "\nbroken line\n")
	want := []mountPoint{{path: `/a b\c`, kind: "tmpfs"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mountPoint{})); diff != "" {
		t.Errorf("mounts differ (-want +got):\n%s", diff)
	}
}

func TestNotInstalled(t *testing.T) {
	listing := "runc installed\niptables config-files\nmount installed\n"
	got := notInstalled([]string{"runc", "iptables", "busybox-static", "mount"}, listing)
	if diff := cmp.Diff([]string{"iptables", "busybox-static"}, got); diff != "" {
		t.Errorf("missing packages differ (-want +got):\n%s", diff)
	}
	if got := strings.Join(notInstalled(nil, listing), ","); got != "" {
		t.Errorf("nothing asked for, yet missing: %s", got)
	}
}
