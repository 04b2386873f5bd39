package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"unicode"

	"k8s.io/apimachinery/pkg/util/validation"
	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"zuulbuild.dev/zuulbuild/gearmanbridge"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// serversFile is what --gearman-servers names; the help of `zuulbuild operator` shows one. The file of --config may have the same list. Without tls a
// server is spoken to in plain text, and `tls: {}` is TLS with the authorities of this machine and no client certificate. The list is read at the start,
// the files of tls for every connection: those may be missing or broken at the start, which costs that server's connections and no other's.
type serversFile struct {
	Servers json.RawMessage `json:"servers"`
}

type serverEntry struct {
	Name    string          `json:"name"`
	Address string          `json:"address"`
	TLS     json.RawMessage `json:"tls"`
}

// readServers puts the servers of --gearman-server, then those of the file of --gearman-servers and then those of the file of --config together. Faults
// say where which field is wrong, and what was expected.
func readServers(texts []string, file string, s *settings) ([]gearmanbridge.Server, []error) {
	var servers serverList
	var faults []error
	for _, text := range texts {
		if err := servers.addText(text); err != nil {
			faults = append(faults, fmt.Errorf("%s %q: %w", s.where("gearman-server"), text, err))
		}
	}
	if file != "" {
		where := s.where("gearman-servers")
		if content, err := os.ReadFile(file); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", where, err))
		} else {
			faults = append(faults, within(where+" "+file, servers.addFile(content))...)
		}
	}
	if s.servers != nil {
		faults = append(faults, within(s.file, servers.addList(s.servers))...)
	}
	return servers, faults
}

// within says of faults where they are.
func within(where string, faults []error) []error {
	for i, fault := range faults {
		faults[i] = fmt.Errorf("%s: %w", where, fault)
	}
	return faults
}

type serverList []gearmanbridge.Server

func (l *serverList) addText(text string) error {
	name, address, named := strings.Cut(text, "=")
	if !named {
		name, address = "", text
	} else if name == "" {
		return errors.New("[NAME=]HOST[:PORT] was expected")
	}
	return l.add(serverEntry{Name: name, Address: address})
}

func (l *serverList) addFile(content []byte) []error {
	document, err := yaml.YAMLToJSONStrict(content)
	if err != nil {
		return []error{err}
	}
	var file serversFile
	if err := decode(document, &file, "", "servers, a list"); err != nil {
		return []error{err}
	}
	return l.addList(file.Servers)
}

// addList adds the servers of a list in JSON; none is not enough.
func (l *serverList) addList(list json.RawMessage) (faults []error) {
	var entries []json.RawMessage
	var mismatch *json.UnmarshalTypeError
	if err := json.Unmarshal(list, &entries); errors.As(err, &mismatch) {
		return []error{fmt.Errorf("servers: a list was expected, not %s", mismatch.Value)}
	}
	if len(entries) == 0 {
		return []error{errors.New("servers: a list of at least one server was expected")}
	}
	for i, raw := range entries {
		path := fmt.Sprintf("servers[%d]", i)
		var entry serverEntry
		if err := decode(raw, &entry, path, "name, address and tls"); err != nil {
			faults = append(faults, err)
		} else if err := l.add(entry); err != nil {
			faults = append(faults, fmt.Errorf("%s.%w", path, err))
		}
	}
	return faults
}

// add a server after those that are there. Errors begin with the name of the field.
func (l *serverList) add(entry serverEntry) error {
	host, port, err := splitAddress(entry.Address)
	if err != nil {
		return fmt.Errorf("address: %w", err)
	}
	server := gearmanbridge.Server{Name: cmp.Or(entry.Name, defaultServerName(host, port)), Address: net.JoinHostPort(host, port)}
	if server.Name == "" {
		return fmt.Errorf("name: one was expected, because none can be made of %q", entry.Address)
	}
	if problems := validation.IsValidLabelValue(server.Name); len(problems) > 0 {
		return fmt.Errorf("name: %q cannot be the value of a label, which it will be: %s", server.Name, strings.Join(problems, "; "))
	}
	for _, other := range *l {
		if other.Name == server.Name {
			return fmt.Errorf("name: %q is that of another server already; each needs a name of its own", server.Name)
		}
		if strings.EqualFold(other.Address, server.Address) {
			return fmt.Errorf("address: %s is that of server %q already; its builds could not be told apart", server.Address, other.Name)
		}
	}
	if entry.TLS != nil {
		var files gearman.TLSFiles
		if err := decode(entry.TLS, &files, "tls", "caFile, certFile, keyFile and serverName"); err != nil {
			return err
		}
		if err := files.Validate(); err != nil {
			return fmt.Errorf("tls.certFile and tls.keyFile: %w", err)
		}
		server.TLS = files.Config
	}
	*l = append(*l, server)
	return nil
}

// splitAddress takes HOST[:PORT] apart.
func splitAddress(address string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(address)
	if err != nil { // without a port?
		host, port, err = net.SplitHostPort(address + ":" + gearman.DefaultPort)
	}
	strange := func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune("/@=,", r)
	}
	number, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil || number == 0 || host == "" || strings.ContainsFunc(host, strange) {
		return "", "", fmt.Errorf("HOST[:PORT] was expected, with an IPv6 address in brackets and a port from 1 to 65535, not %q", address)
	}
	return host, port, nil
}

// defaultServerName is the name of a server that was given none: its host, and "-" and its port unless that is 4730, with "-" in place of what no
// label value may have. So gearman.example.org:4731 is gearman.example.org-4731, and [::1] is 1.
func defaultServerName(host, port string) string {
	if port != gearman.DefaultPort {
		host += "-" + port
	}
	name := strings.Map(func(r rune) rune {
		if r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("-_.", r)) {
			return r
		}
		return '-'
	}, host)
	return strings.Trim(name, "-_.")
}

// decode strictly: the value of a path in the file must be an object of known fields, and each of its type.
func decode(raw []byte, into any, path, known string) error {
	if path != "" {
		path += "."
	}
	expected := fmt.Errorf("%s: an object of %s was expected", cmp.Or(strings.TrimSuffix(path, "."), "the file"), known)
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) { // null too, which would pass for an empty object
		return expected
	}
	strict, err := strictjson.UnmarshalStrict(raw, into)
	var mismatch *json.UnmarshalTypeError
	if errors.As(err, &mismatch) {
		return fmt.Errorf("%s%s: a string was expected, not %s", path, mismatch.Field, mismatch.Value)
	}
	if err != nil {
		return err
	}
	for _, unknown := range strict {
		return fmt.Errorf("%w, but there is: %w", expected, unknown)
	}
	return nil
}
