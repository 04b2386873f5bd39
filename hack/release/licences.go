package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/google/licensecheck"

	"zuulbuild.dev/zuulbuild/hack/reproducible"
)

const (
	licencesFile = "licences.txt"
	// ownLicence is zuulbuild's.
	ownLicence = "Apache-2.0"
	// recognised is how much of a file, in percent of its words, must be a licence that is known: what pkg.go.dev asks for.
	recognised = 75
)

// allowed are the licences that what is linked into the program may have, by their SPDX identifiers: those that ask for nothing but their text to be passed
// on, which licences.txt does. Whoever adds one has read it.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT"}

// licensed is a module that is linked into the program, with its files about licences.
type licensed struct {
	module
	files []licenceFile
}

// licenceFile is a file that tells of licences, or a NOTICE, which is to be passed on where the licence is Apache's.
type licenceFile struct {
	name        string   // relative to the module
	text        string   // all of it
	notice      bool     // it is a NOTICE
	identifiers []string // of the licences in it, sorted; none if it is not known
}

// expression is all licences of a module, as SPDX writes it.
func (l licensed) expression() string {
	var identifiers []string
	for _, file := range l.files {
		identifiers = append(identifiers, file.identifiers...)
	}
	slices.Sort(identifiers)
	return strings.Join(slices.Compact(identifiers), " AND ")
}

// check returns an error that says why the module may not be linked into the program, or nil.
func (l licensed) check() error {
	name := strings.TrimSpace(l.path + " " + l.version)
	if !slices.ContainsFunc(l.files, func(file licenceFile) bool { return !file.notice }) {
		return fmt.Errorf("%s has no licence file, so nobody may use it", name)
	}
	for _, file := range l.files {
		if !file.notice && len(file.identifiers) == 0 {
			return fmt.Errorf("%s: %s is no licence that is known", name, file.name)
		}
		for _, identifier := range file.identifiers {
			if !slices.Contains(allowed, identifier) {
				return fmt.Errorf("%s: %s is %s, which is not among the licences allowed: %s", name, file.name, identifier, strings.Join(allowed, ", "))
			}
		}
	}
	return nil
}

// covered returns an error that names the modules of a program that are not among those whose licences were looked at.
func covered(info *debug.BuildInfo, licences []licensed) error {
	var missing []error
	for _, m := range linkedModules(info) {
		if !slices.ContainsFunc(licences, func(l licensed) bool { return l.module == m.module }) {
			missing = append(missing, fmt.Errorf("%s %s is linked into the program, and its licence was not looked at", m.path, m.version))
		}
	}
	return errors.Join(missing...)
}

// licenceNames are those of files about licences, in the spellings that are in use; noticeNames those of notices.
var (
	licenceNames = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying)s?([-._].*)?$`)
	noticeNames  = regexp.MustCompile(`(?i)^notice([-._].*)?$`)
)

// identify gives the licences in a text, sorted; none if too much of it is something else. An address of a licence is none.
func identify(text []byte) []string {
	coverage := licensecheck.Scan(text)
	if coverage.Percent < recognised {
		return nil
	}
	var identifiers []string
	for _, match := range coverage.Match {
		if !match.IsURL {
			identifiers = append(identifiers, match.ID)
		}
	}
	slices.Sort(identifiers)
	return slices.Compact(identifiers)
}

// readLicences reads the licences of all modules that are linked into the program on any platform, sorted by module. The error names each module that
// may not be.
func readLicences(ctx context.Context) ([]licensed, error) {
	folders := map[module]map[string]bool{}
	roots := map[module]string{}
	for _, platform := range platforms {
		if platform.Architecture != platforms[0].Architecture {
			continue // systems differ in modules, architectures in files
		}
		packages, err := listPackages(ctx, platform)
		if err != nil {
			return nil, err
		}
		for _, p := range packages {
			m, root := p.origin()
			if folders[m] == nil {
				folders[m], roots[m] = map[string]bool{}, root
			}
			for folder := p.ownFolder(); len(folder) > len(root); folder = filepath.Dir(folder) {
				folders[m][folder] = true
			}
			folders[m][root] = true
		}
	}
	var all []licensed
	var refused []error
	for _, m := range slices.SortedFunc(maps.Keys(folders), module.compare) {
		l := licensed{module: m}
		for folder := range folders[m] {
			files, err := readLicenceFiles(roots[m], folder)
			if err != nil {
				return nil, err
			}
			l.files = append(l.files, files...)
		}
		slices.SortFunc(l.files, func(a, b licenceFile) int { return strings.Compare(a.name, b.name) })
		all, refused = append(all, l), append(refused, l.check())
	}
	return all, errors.Join(refused...)
}

// readLicenceFiles reads those of one folder of a module.
func readLicenceFiles(root, folder string) ([]licenceFile, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var files []licenceFile
	for _, entry := range entries {
		licence, notice := licenceNames.MatchString(entry.Name()), noticeNames.MatchString(entry.Name())
		if !licence && !notice || entry.IsDir() || filepath.Ext(entry.Name()) == ".go" {
			continue
		}
		name := filepath.Join(folder, entry.Name())
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		relative, err := filepath.Rel(root, name)
		if err != nil {
			return nil, err
		}
		file := licenceFile{name: filepath.ToSlash(relative), text: string(text), notice: notice}
		if licence {
			file.identifiers = identify(text)
		}
		files = append(files, file)
	}
	return files, nil
}

// listedPackage is what is read of a package in the output of `go list -json`.
type listedPackage struct {
	Dir, Root string
	Standard  bool
	Module    *struct {
		Path, Version, Dir string
		Replace            *struct{ Path, Version string }
	}
}

// origin is the module of a package, and its folder.
func (p listedPackage) origin() (m module, root string) {
	switch {
	case p.Standard:
		return goModule(runtime.Version()), p.Root
	case p.Module.Replace != nil:
		return module{p.Module.Replace.Path, p.Module.Replace.Version}, p.Module.Dir
	default:
		return module{p.Module.Path, p.Module.Version}, p.Module.Dir
	}
}

// ownFolder is that of the package, which may have a licence of its own. What Go's own packages have is of the C code for GOEXPERIMENT=boringcrypto,
// which reproducible.Environment leaves out: only the licence of Go counts.
func (p listedPackage) ownFolder() string {
	if p.Standard {
		return p.Root
	}
	return p.Dir
}

// listPackages lists all that are linked into the program on a platform.
func listPackages(ctx context.Context, platform reproducible.Platform) ([]listedPackage, error) {
	command := exec.CommandContext(ctx, "go", "list", "-deps", "-json=Dir,Root,Standard,Module", "zuulbuild.dev/zuulbuild")
	command.Env = append(os.Environ(), reproducible.Environment(platform)...)
	var errorText bytes.Buffer
	command.Stderr = &errorText
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("list the packages for %s: %w\n%s", platform, err, errorText.Bytes())
	}
	var packages []listedPackage
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var p listedPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, err
		}
		packages = append(packages, p)
	}
}

// licenceText is a table of modules and licences, and after it the texts, each once with all files that have it.
func licenceText(version string, licences []licensed) string {
	var text strings.Builder
	fmt.Fprintf(&text, "What the programs of zuulbuild %s consist of, and its licences. Their texts follow.\n\n", version)
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	sources := map[string][]string{}
	var texts []string
	for _, l := range licences {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", l.path, l.version, l.expression())
		for _, file := range l.files {
			if sources[file.text] == nil {
				texts = append(texts, file.text)
			}
			sources[file.text] = append(sources[file.text], l.path+"/"+file.name)
		}
	}
	_ = table.Flush()
	for _, licence := range texts {
		fmt.Fprintf(&text, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 80), strings.Join(sources[licence], "\n"), strings.Trim(licence, "\n"))
	}
	return text.String()
}
