// Package hack holds what the project's tools share: the one list of versions they are built from.
package hack

import (
	"bufio"
	_ "embed"
	"fmt"
	"regexp"
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

var kubernetesRelease = regexp.MustCompile(`^v?(1\.[0-9]+)(\.[0-9]+(-[a-z0-9.]+)?)?$`)

// KubernetesVersions are the releases of Kubernetes that the project is tried on, as v1.37.2, from the least on.
func KubernetesVersions(versions map[string]string) []string {
	return append(strings.Split(versions["OLDER_KUBERNETES_VERSIONS"], ","), versions["KUBERNETES_VERSION"])
}

// KubernetesVersion is the release of Kubernetes, as v1.37.2, that wanted means: a minor version, as 1.37, is its release in versions.env; a
// release is itself, there or not; none is KUBERNETES_VERSION.
func KubernetesVersion(versions map[string]string, wanted string) (string, error) {
	if wanted == "" {
		return versions["KUBERNETES_VERSION"], nil
	}
	parts := kubernetesRelease.FindStringSubmatch(wanted)
	if parts == nil {
		return "", fmt.Errorf("%q is no version of Kubernetes: want one as 1.37 or 1.37.2", wanted)
	}
	if parts[2] != "" {
		return "v" + parts[1] + parts[2], nil
	}
	pinned := KubernetesVersions(versions)
	for _, version := range pinned {
		if strings.HasPrefix(version, "v"+parts[1]+".") {
			return version, nil
		}
	}
	return "", fmt.Errorf("hack/versions.env has no release of Kubernetes %s: name one, as %s.0, or take one of %s", parts[1], parts[1],
		strings.Join(pinned, ", "))
}
