package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"zuulbuild.dev/zuulbuild/hack/reproducible"
)

// program is one that was built, as it says itself what it was linked from.
type program struct {
	platform reproducible.Platform
	archive  artifact
	info     *debug.BuildInfo
}

// document is an SPDX document of what is used of version 2.3 (https://spdx.github.io/spdx-spec/v2.3).
type document struct {
	SPDXVersion       string             `json:"spdxVersion"`
	DataLicense       string             `json:"dataLicense"`
	SPDXID            string             `json:"SPDXID"`
	Name              string             `json:"name"`
	DocumentNamespace string             `json:"documentNamespace"`
	CreationInfo      documentCreation   `json:"creationInfo"`
	Packages          []documentPackage  `json:"packages"`
	Relationships     []documentRelation `json:"relationships"`
}

type documentCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type documentPackage struct {
	Name             string              `json:"name"`
	SPDXID           string              `json:"SPDXID"`
	VersionInfo      string              `json:"versionInfo"`
	PackageFileName  string              `json:"packageFileName,omitempty"`
	Supplier         string              `json:"supplier"`
	DownloadLocation string              `json:"downloadLocation"`
	FilesAnalyzed    bool                `json:"filesAnalyzed"` // said even where false: left out it means true
	Checksums        []documentChecksum  `json:"checksums,omitempty"`
	SourceInfo       string              `json:"sourceInfo,omitempty"`
	LicenseConcluded string              `json:"licenseConcluded"`
	LicenseDeclared  string              `json:"licenseDeclared"`
	CopyrightText    string              `json:"copyrightText"`
	ExternalRefs     []documentReference `json:"externalRefs,omitempty"`
	Purpose          string              `json:"primaryPackagePurpose"`
}

type documentChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type documentReference struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type documentRelation struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

const (
	documentID = "SPDXRef-DOCUMENT"
	unknown    = "NOASSERTION"
)

// newDocument describes the programs by the modules that were linked into each, with the licences that were found for them.
func newDocument(version string, date time.Time, programs []program, licences []licensed) document {
	d := document{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: documentID, Name: "zuulbuild-" + version,
		CreationInfo: documentCreation{Created: date.UTC().Format(time.RFC3339), Creators: []string{"Organization: zuulbuild", "Tool: zuulbuild hack/release"}},
	}
	archives := sha256.New()
	var modules []linkedModule
	for _, p := range programs {
		archives.Write([]byte(p.archive.sum))
		own := describeProgram(version, p)
		d.Packages = append(d.Packages, own)
		d.Relationships = append(d.Relationships, documentRelation{documentID, "DESCRIBES", own.SPDXID})
		for _, m := range linkedModules(p.info) {
			modules = append(modules, m)
			d.Relationships = append(d.Relationships, documentRelation{own.SPDXID, "DEPENDS_ON", m.identifier()})
		}
	}
	slices.SortFunc(modules, func(a, b linkedModule) int { return a.compare(b.module) })
	for _, m := range slices.Compact(modules) {
		d.Packages = append(d.Packages, describeModule(m, licences))
	}
	// A document's namespace is its name in all the world: what was described makes it.
	d.DocumentNamespace = fmt.Sprintf("https://zuulbuild.dev/spdx/zuulbuild-%s-%s", version, hex.EncodeToString(archives.Sum(nil)[:16]))
	return d
}

func describeProgram(version string, p program) documentPackage {
	return documentPackage{
		Name: "zuulbuild", SPDXID: identifier("Program", p.platform.OS, p.platform.Architecture), VersionInfo: version, PackageFileName: p.archive.name,
		Supplier: "Organization: zuulbuild", DownloadLocation: unknown, Checksums: []documentChecksum{{"SHA256", p.archive.sum}},
		LicenseConcluded: ownLicence, LicenseDeclared: ownLicence, CopyrightText: unknown, Purpose: "APPLICATION",
	}
}

func describeModule(m linkedModule, licences []licensed) documentPackage {
	expression := unknown
	if i := slices.IndexFunc(licences, func(l licensed) bool { return l.module == m.module }); i >= 0 {
		expression = licences[i].expression()
	}
	described := documentPackage{
		Name: m.path, SPDXID: m.identifier(), VersionInfo: m.version, Supplier: unknown, DownloadLocation: unknown,
		LicenseConcluded: expression, LicenseDeclared: expression, CopyrightText: unknown, Purpose: "LIBRARY",
		ExternalRefs: []documentReference{{"PACKAGE-MANAGER", "purl", m.packageURL()}},
	}
	if m.sum != "" {
		// Not a checksum: those are of files, and this is of what is in the module (https://go.dev/ref/mod#go-sum-files).
		described.SourceInfo = "go.sum: " + m.sum
	}
	return described
}

func encodeDocument(d document) ([]byte, error) {
	content, err := json.MarshalIndent(d, "", "  ")
	return append(content, '\n'), err
}

// module is a Go module at a version, or Go's own packages under the name standardLibrary.
type module struct{ path, version string }

// standardLibrary is how those who look for vulnerabilities call Go's own packages.
const standardLibrary = "stdlib"

// linkedModule is a module in a program, with its line of go.sum where it has one.
type linkedModule struct {
	module
	sum string
}

func (m module) compare(other module) int {
	return cmp.Or(strings.Compare(m.path, other.path), strings.Compare(m.version, other.version))
}

func (m module) identifier() string { return identifier("Module", m.path, m.version) }

// packageURL is as https://github.com/package-url/purl-spec has it.
func (m module) packageURL() string {
	return "pkg:golang/" + strings.ToLower(m.path) + "@" + strings.ReplaceAll(m.version, "+", "%2B")
}

// linkedModules are what a program says it was linked from, sorted.
func linkedModules(info *debug.BuildInfo) []linkedModule {
	modules := []linkedModule{{module: goModule(info.GoVersion)}}
	for _, dependency := range info.Deps {
		if dependency.Replace != nil {
			dependency = dependency.Replace
		}
		modules = append(modules, linkedModule{module{dependency.Path, dependency.Version}, dependency.Sum})
	}
	slices.SortFunc(modules, func(a, b linkedModule) int { return a.compare(b.module) })
	return modules
}

// goModule is Go itself, by what it calls its version: go1.26.8, and what it was set to behind a blank.
func goModule(version string) module {
	version, _, _ = strings.Cut(strings.TrimPrefix(version, "go"), " ")
	return module{standardLibrary, version}
}

var identifierCharacters = regexp.MustCompile(`[^A-Za-z0-9.-]`)

// identifier of something in an SPDX document, which may have letters, digits, dots and hyphens.
func identifier(parts ...string) string {
	name := strings.ReplaceAll(strings.Join(parts, "-"), "/", "--")
	return "SPDXRef-" + identifierCharacters.ReplaceAllStringFunc(name, func(char string) string { return fmt.Sprintf("-%x-", char) })
}
