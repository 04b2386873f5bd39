package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
)

// Addresses and names of Gearman servers that the operator would refuse are refused, and those that it takes are taken: see TestServerFlags of the program.
func TestServers(t *testing.T) {
	t.Parallel()
	const address = "HOST[:PORT] was expected, with an IPv6 address in brackets and a port from 1 to 65535"
	for i, test := range []struct {
		servers string
		says    string // "" where they are taken
		port    int32  // of the first, where it is taken
	}{
		{`{address: localhost}`, "", 4730},
		{`{address: "a:04731"}`, "", 4731},
		{`{address: "a:65535"}`, "", 65535},
		{`{address: "2001:db8::1"}`, "gearman.servers[0].address: " + address, 0},
		{`{address: "[2001:db8::1]:4731"}, {address: "[2001:db8::1]"}`, "", 4731},
		{`{address: "a:65536"}`, "gearman.servers[0].address: " + address + `, not "a:65536"`, 0},
		{`{address: a}, {address: "b:0"}`, "gearman.servers[1].address: " + address, 0},
		{`{address: "a:00"}`, address, 0},
		{`{address: "a:"}`, address, 0},
		{`{address: "[::1]:"}`, address, 0},
		{`{address: "a:gearman"}`, address, 0},
		{`{address: ":4730"}`, address, 0},
		{`{address: "[]:4730"}`, address, 0},
		{`{address: "[::1"}`, address, 0},
		{`{address: "[::1]4730"}`, address, 0},
		{`{address: "[a]b:4730"}`, address, 0},
		{`{address: "a\u00a0b"}`, address, 0},
		{`{address: "a\u0001b"}`, address, 0},
		{`{address: "-"}`, `gearman.servers[0].name: one of at most 63 characters was expected`, 0},
		{`{address: "` + strings.Repeat("a", 64) + `"}`, "cannot be the value of a label", 0},
		{`{name: a, address: "` + strings.Repeat("a", 64) + `"}`, "", 4730},
		{`{name: z, address: a}, {name: z, address: b}`, `gearman.servers[1].name: "z" is that of gearman.servers[0] already`, 0},
		{`{name: b, address: a}, {address: "b:4730"}`, `gearman.servers[1].name: "b" is that of gearman.servers[0] already`, 0},
		{`{name: b-4731, address: a}, {address: "b:4731"}`, `gearman.servers[1].name: "b-4731" is that of`, 0},
		{`{name: 2001-db8--1, address: a}, {address: "[2001:db8::1]"}`, `gearman.servers[1].name: "2001-db8--1" is that of`, 0},
		{`{name: 1-4731, address: a}, {name: "", address: "[::1]:4731"}`, `gearman.servers[1].name: "1-4731" is that of`, 0},
		{`{name: Z, address: a}, {name: z, address: b}`, "", 4730},
		{`{address: a}, {address: "a:4731"}`, "", 4730},
		{`{name: x, address: a}, {name: z, address: "A:4730"}`, "gearman.servers[1].address: A:4730 is that of gearman.servers[0] already", 0},
		{`{name: x, address: a}, {name: z, address: "[a]"}`, "gearman.servers[1].address: a:4730 is that of gearman.servers[0] already", 0},
		{`{name: embedded, address: a}`, "", 4730},
	} {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			file, values := filepath.Join(t.TempDir(), "values.yaml"), fmt.Sprintf("gearman: {servers: [%s]}\n", test.servers)
			if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
				t.Fatal(err)
			}
			output, err := template(t, "--values", file)
			if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("%s: got error %v, want %q in it", values, err, test.says)
			}
			if test.says != "" {
				return
			}
			policy := networkingv1.NetworkPolicy{}
			into(t, find(t, objects(t, output), "NetworkPolicy", "zuulbuild").Object, &policy)
			if port := policy.Spec.Egress[2].Ports[0].Port.IntVal; port != test.port {
				t.Errorf("%s: the operator may reach port %d rather than %d", values, port, test.port)
			}
		})
	}
}
