package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

func TestServerFlags(t *testing.T) {
	type server struct{ Name, Address string }
	for _, test := range []struct {
		flags []string
		want  []server
		says  string
	}{
		{flags: nil},
		{flags: []string{"localhost"}, want: []server{{"localhost", "localhost:4730"}}},
		{flags: []string{"zuul=gearman.example.org:4730"}, want: []server{{"zuul", "gearman.example.org:4730"}}},
		{
			flags: []string{"Gearman.example.org", "gearman.example.org:4731", "[2001:db8::1]", "[::1]:4731"},
			want: []server{
				{"Gearman.example.org", "Gearman.example.org:4730"}, {"gearman.example.org-4731", "gearman.example.org:4731"},
				{"2001-db8--1", "[2001:db8::1]:4730"}, {"1-4731", "[::1]:4731"},
			},
		},
		{flags: []string{""}, says: `--gearman-server "": address: HOST[:PORT] was expected`},
		{flags: []string{"a="}, says: `address: HOST[:PORT] was expected`},
		{flags: []string{"=a"}, says: `[NAME=]HOST[:PORT] was expected`},
		{flags: []string{"a:"}, says: `port from 1 to 65535, not "a:"`},
		{flags: []string{"a:0"}, says: `port from 1 to 65535`},
		{flags: []string{"a:65536"}, says: `port from 1 to 65535`},
		{flags: []string{"a:gearman"}, says: `port from 1 to 65535`},
		{flags: []string{":4730"}, says: `HOST[:PORT] was expected`},
		{flags: []string{"2001:db8::1"}, says: `in brackets`},
		{flags: []string{"tcp://a:4730"}, says: `HOST[:PORT] was expected`},
		{flags: []string{"a b"}, says: `HOST[:PORT] was expected`},
		{flags: []string{"a,b"}, says: `HOST[:PORT] was expected`},
		{flags: []string{"-"}, says: `none can be made of "-"`},
		{flags: []string{"-a=b"}, says: `name: "-a" cannot be the value of a label`},
		{flags: []string{strings.Repeat("a", 64)}, says: "cannot be the value of a label, which it will be: must be no more than 63"},
		{flags: []string{"z=a", "z=b"}, says: `--gearman-server "z=b": name: "z" is that of another server already`},
		{flags: []string{"y=a", "z=A:4730"}, says: `--gearman-server "z=A:4730": address: A:4730 is that of server "y" already`},
	} {
		servers, faults := readServers(test.flags, "", &settings{})
		var got []server
		for _, s := range servers {
			got = append(got, server{s.Name, s.Address})
		}
		if diff := cmp.Diff(test.want, got); diff != "" && test.says == "" {
			t.Errorf("%q (-want +got):\n%s", test.flags, diff)
		}
		checkError(t, strings.Join(test.flags, " "), errors.Join(faults...), test.says)
	}
}

// checkError wants an error that says something, or none if there is nothing to say.
func checkError(t *testing.T, what string, err error, says string) {
	t.Helper()
	if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
		t.Errorf("%s: got error %v, want %q in it", what, err, says)
	}
}

func TestServersFile(t *testing.T) {
	folder := t.TempDir()
	authority := gearmantest.NewAuthority(t)
	files := authority.WriteFiles(folder, authority.Sign("client", nil))
	name := filepath.Join(folder, "servers.yaml")
	must(t, os.WriteFile(name, []byte(`
servers:
- name: zuul
  address: gearman.example.org
  tls: {caFile: `+files.CAFile+`, certFile: `+files.CertFile+`, keyFile: `+files.KeyFile+`, serverName: gearman}
- address: gearman.example.org:4731
  tls: {}
- {"name": "plain", "address": "[::1]:4730"}
`), 0o600))
	servers, faults := readServers([]string{"first=localhost"}, name, &settings{})
	must(t, errors.Join(faults...))
	var got []string
	for _, server := range servers {
		description := server.Name + " " + server.Address
		if server.TLS != nil {
			config, err := server.TLS()
			must(t, err)
			if description += " TLS " + config.ServerName; config.RootCAs != nil && config.RootCAs.Equal(authority.Pool()) {
				description += " CA"
			}
			if config.GetClientCertificate != nil {
				description += " certificate"
			}
		}
		got = append(got, description)
	}
	want := []string{
		"first localhost:4730", "zuul gearman.example.org:4730 TLS gearman CA certificate",
		"gearman.example.org-4731 gearman.example.org:4731 TLS ", "plain [::1]:4730",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
}

func TestServersFileErrors(t *testing.T) {
	for content, says := range map[string]string{
		"":                                           "the file: an object of servers, a list was expected",
		"- address: a":                               "the file: an object of servers",
		"servers:":                                   "servers: a list of at least one server",
		"servers: []":                                "servers: a list of at least one server",
		"servers: {address: a}":                      "servers: a list was expected, not object",
		"server: []":                                 `unknown field "server"`,
		"servers: [":                                 "line 1",
		"servers:\n- address: a\n\t- address: b":     "line 3",
		"servers:\n- address: a\n  address: b":       `line 3: key "address" already set`,
		"servers: [{address: a}, b]":                 "servers[1]: an object of name, address and tls",
		"servers: [{address: a}, {name: b}]":         "servers[1].address: HOST[:PORT] was expected",
		"servers: [{Address: a}]":                    `servers[0]: an object of name, address and tls was expected, but there is: unknown field "Address"`,
		"servers: [{address: 4730}]":                 "servers[0].address: a string was expected, not number",
		"servers: [{name: yes, address: a}]":         "servers[0].name: a string was expected, not bool",
		"servers: [{name: first, address: a}]":       `servers[0].name: "first" is that of another server`,
		"servers: [{address: a}, {address: a:4730}]": `servers[1].name: "a" is that of another server`,
		"servers: [{address: a}, {name: b, address: a:4730}]": `servers[1].address: a:4730 is that of server "a"`,
		"servers:\n- address: a\n  tls:":                      "servers[0].tls: an object of caFile",
		"servers: [{address: a, tls: true}]":                  "servers[0].tls: an object of caFile",
		"servers: [{address: a, tls: {cafile: b}}]":           `servers[0].tls: an object of caFile, certFile, keyFile and serverName was expected, but there is: unknown field "cafile"`,
		"servers: [{address: a, tls: {caFile: [b]}}]":         "servers[0].tls.caFile: a string was expected, not array",
		"servers: [{address: a, tls: {certFile: b}}]":         "servers[0].tls.certFile and tls.keyFile",
		"servers: [{address: a, tls: {keyFile: b}}]":          "go together",
	} {
		name := filepath.Join(t.TempDir(), "servers.yaml")
		must(t, os.WriteFile(name, []byte(content), 0o600))
		_, faults := readServers([]string{"first=localhost"}, name, &settings{})
		err := errors.Join(faults...)
		checkError(t, content, err, says)
		checkError(t, content, err, "--gearman-servers "+name+": ")
	}
	_, faults := readServers(nil, filepath.Join(t.TempDir(), "none"), &settings{})
	checkError(t, "no file", errors.Join(faults...), "--gearman-servers: open ")
}

// TestServersFaults: all that is wrong is told, wherever it is, and the servers that are right are there.
func TestServersFaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "servers.yaml")
	must(t, os.WriteFile(file, []byte("servers: [{address: a}, b, {address: 'c:0'}, {address: d, tls: {certFile: e}}, {address: f}]"), 0o600))
	s := &settings{
		file: "config.yaml", sources: map[string]source{"gearman-server": fromEnvironment, "gearman-servers": fromFile},
		servers: []byte(`[{"address": "f"}, {"address": "g", "tls": {}}]`),
	}
	servers, faults := readServers([]string{"a", "=b"}, file, s)
	var names, told []string
	for _, server := range servers {
		names = append(names, server.Name)
	}
	for _, fault := range faults {
		told = append(told, strings.ReplaceAll(fault.Error(), file, "FILE"))
	}
	if diff := cmp.Diff([]string{"a", "f", "g"}, names); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
	want := []string{
		`ZUULBUILD_OPERATOR_GEARMAN_SERVER "=b": [NAME=]HOST[:PORT] was expected`,
		`config.yaml: gearman-servers FILE: servers[0].name: "a" is that of another server already; each needs a name of its own`,
		`config.yaml: gearman-servers FILE: servers[1]: an object of name, address and tls was expected`,
		`config.yaml: gearman-servers FILE: servers[2].address: HOST[:PORT] was expected, with an IPv6 address in brackets and a port from 1 to 65535, not "c:0"`,
		`config.yaml: gearman-servers FILE: servers[3].tls.certFile and tls.keyFile: a certificate and a key go together: give both or neither`,
		`config.yaml: servers[0].name: "f" is that of another server already; each needs a name of its own`,
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}
