// Package hack holds what the project's tools share: the one list of versions they are built from.
package hack

import (
	"bufio"
	_ "embed"
	"fmt"
	"strings"
)

//go:embed versions.env
var versionsFile string

// Versions returns the NAME=VALUE lines of versions.env, the file the Makefile includes too.
func Versions() (map[string]string, error) {
	versions, err := parseVersions(versionsFile)
	if err != nil {
		return nil, fmt.Errorf("hack/versions.env: %w", err)
	}
	return versions, nil
}

// parseVersions reads NAME=VALUE lines; empty lines and lines starting with # are skipped. Values are taken as they
// stand: make and a shell must read the same, so quotes and spaces are refused.
func parseVersions(text string) (map[string]string, error) {
	versions := map[string]string{}
	scanner := bufio.NewScanner(strings.NewReader(text))
	for number := 1; scanner.Scan(); number++ {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		switch {
		case !found || name == "" || value == "":
			return nil, fmt.Errorf("line %d: want NAME=VALUE, got %q", number, line)
		case strings.ContainsAny(line, " \t\"'`$"):
			return nil, fmt.Errorf("line %d: quotes, spaces and variables are not allowed: %q", number, line)
		case versions[name] != "":
			return nil, fmt.Errorf("line %d: %s is set twice", number, name)
		}
		versions[name] = value
	}
	return versions, scanner.Err()
}
