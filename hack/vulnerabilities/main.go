// Command vulnerabilities fails if the program can reach known vulnerabilities of modules, which a newer version in go.mod mends. Of those of Go's own
// library it warns: whoever builds chooses the Go.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() {
	program := flag.String("govulncheck", "govulncheck", "the program that looks")
	database := flag.String("db", "https://vuln.go.dev", "the database of what is known, as govulncheck takes it")
	flag.Parse()
	if err := run(*program, *database); err != nil {
		fmt.Fprintln(os.Stderr, "vulnerabilities:", err)
		os.Exit(1)
	}
}

func run(program, database string) error {
	command := exec.Command(program, "-format", "json", "-db", database, ".")
	command.Stderr = os.Stderr
	output, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	found, readErr := read(output)
	if err := errors.Join(readErr, command.Wait()); err != nil {
		return fmt.Errorf("nothing was checked: %w", err)
	}
	return judge(os.Stdout, found)
}

// finding is a vulnerability the program reaches.
type finding struct {
	id, summary, module, version, fixed string
}

// standardLibrary is the module that govulncheck finds Go's own packages in.
const standardLibrary = "stdlib"

// read finds in what govulncheck says (its JSON format, version 1) the vulnerabilities with a way from this program to the faulty function, each once for a
// module, sorted.
func read(output io.Reader) ([]finding, error) {
	summaries := map[string]string{}
	found := map[finding]bool{}
	for decoder := json.NewDecoder(output); ; {
		var message struct {
			OSV     *struct{ ID, Summary string }
			Finding *struct {
				OSV          string
				FixedVersion string `json:"fixed_version"`
				Trace        []struct{ Module, Version, Function string }
			}
		}
		switch err := decoder.Decode(&message); {
		case errors.Is(err, io.EOF):
			out := []finding{}
			for f := range found {
				f.summary = summaries[f.id]
				out = append(out, f)
			}
			slices.SortFunc(out, func(a, b finding) int { return strings.Compare(a.id+a.module, b.id+b.module) })
			return out, nil
		case err != nil:
			return nil, err
		}
		if message.OSV != nil {
			summaries[message.OSV.ID] = message.OSV.Summary
		}
		if f := message.Finding; f != nil && len(f.Trace) > 0 && f.Trace[0].Function != "" { // the first is the faulty function, if it is reached
			found[finding{id: f.OSV, module: f.Trace[0].Module, version: f.Trace[0].Version, fixed: f.FixedVersion}] = true
		}
	}
}

// judge tells of all that was found, and returns an error if a module has to be raised.
func judge(to io.Writer, found []finding) error {
	raise := 0
	for _, f := range found {
		remedy := "no version without it is known"
		if f.fixed != "" {
			remedy = "mended in " + f.fixed
		}
		if f.module == standardLibrary {
			_, _ = fmt.Fprintf(to, "warning: %s: %s: in the Go of this machine, %s; %s\n", f.id, f.summary, f.version, remedy)
			continue
		}
		raise++
		_, _ = fmt.Fprintf(to, "%s: %s: in %s %s; %s\n", f.id, f.summary, f.module, f.version, remedy)
	}
	if raise > 0 {
		return fmt.Errorf("%d known vulnerabilities of modules can be reached", raise)
	}
	return nil
}
