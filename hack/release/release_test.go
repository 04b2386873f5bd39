package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/hack/reproducible"
)

// testPrograms are two, of which one has a module more, one that was replaced, and one without a sum.
func testPrograms() []program {
	uuid := &debug.Module{Path: "github.com/google/uuid", Version: "v1.6.0", Sum: "h1:uuid="}
	return []program{
		{
			platform: reproducible.Platform{OS: "linux", Architecture: "amd64"}, archive: artifact{name: "zuulbuild-1.2.3-linux-amd64.tar.gz", sum: "aa"},
			info: &debug.BuildInfo{GoVersion: "go1.26.8", Deps: []*debug.Module{uuid}},
		},
		{
			platform: reproducible.Platform{OS: "darwin", Architecture: "arm64"}, archive: artifact{name: "zuulbuild-1.2.3-darwin-arm64.tar.gz", sum: "bb"},
			info: &debug.BuildInfo{GoVersion: "go1.26.8 X:boringcrypto", Deps: []*debug.Module{
				uuid, {Path: "example.org/was", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/Is_Now", Version: "v2.0.0+incompatible"}},
			}},
		},
	}
}

func testLicences() []licensed {
	return []licensed{
		{module: module{"example.org/Is_Now", "v2.0.0+incompatible"}, files: []licenceFile{
			{name: "COPYING", text: "of MIT\n", identifiers: []string{"MIT"}}, {name: "LICENSE", text: "of BSD\n", identifiers: []string{"BSD-3-Clause", "MIT"}},
			{name: "NOTICE", text: "a notice\n", notice: true},
		}},
		{module: module{"github.com/google/uuid", "v1.6.0"}, files: []licenceFile{{name: "LICENSE", text: "of BSD\n", identifiers: []string{"BSD-3-Clause"}}}},
		{module: module{"stdlib", "1.26.8"}, files: []licenceFile{{name: "LICENSE", text: "of BSD\n", identifiers: []string{"BSD-3-Clause"}}}},
	}
}

func TestChecksums(t *testing.T) {
	got := checksums([]artifact{{name: "b", sum: "01"}, {name: "a", sum: "02"}})
	if want := "02  a\n01  b\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWrite(t *testing.T) {
	r := release{folder: t.TempDir()}
	if err := r.write("file", "a file", []byte("content")); err != nil {
		t.Fatal(err)
	}
	want := artifact{name: "file", about: "a file", sum: "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73", size: 7}
	if got := r.artifacts[0]; got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := r.writeChecksums(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(r.folder, "stray"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.writeChecksums(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "stray ") {
		t.Errorf("a file that nothing is known of: error %v", err)
	}
}

func TestProgramArchive(t *testing.T) {
	content, err := programArchive([]byte("program"), []byte("own licence"), []byte("other licences"), time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	reader, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for files := tar.NewReader(reader); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		got[header.Name] = header.FileInfo().Mode().String() + " " + string(text)
	}
	want := map[string]string{"LICENSE": "-rw-r--r-- own licence", "licences.txt": "-rw-r--r-- other licences", "zuulbuild": "-rwxr-xr-x program"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files differ (-want +got):\n%s", diff)
	}
}

func TestRefusals(t *testing.T) {
	taken := t.TempDir()
	if err := os.WriteFile(filepath.Join(taken, "thesis"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		options options
		want    string
	}{
		"no version":       {options{output: t.TempDir()}, `--version "": a version such as 1.2.3`},
		"no tag":           {options{version: "1.2.3+4", output: t.TempDir()}, `--version "1.2.3+4": a version`},
		"another's folder": {options{version: "1.2.3", output: taken}, "something else than a release"},
		"no folder":        {options{version: "1.2.3"}, "--output: the folder"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := test.options.run(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestPluginManifest(t *testing.T) {
	got, err := pluginManifest("1.2.3", "https://example.org/1.2.3", testPrograms())
	if err != nil {
		t.Fatal(err)
	}
	want := `apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: zuulbuild
spec:
  description: |
    Shows, follows and stops the builds that zuulbuild runs as Pods for Zuul v2, and sends builds as Zuul would.
  homepage: https://zuulbuild.dev
  platforms:
  - bin: kubectl-zuulbuild
    files:
    - from: zuulbuild
      to: kubectl-zuulbuild
    - from: LICENSE
      to: .
    - from: licences.txt
      to: .
    selector:
      matchLabels:
        arch: amd64
        os: linux
    sha256: aa
    uri: https://example.org/1.2.3/zuulbuild-1.2.3-linux-amd64.tar.gz
  - bin: kubectl-zuulbuild
    files:
    - from: zuulbuild
      to: kubectl-zuulbuild
    - from: LICENSE
      to: .
    - from: licences.txt
      to: .
    selector:
      matchLabels:
        arch: arm64
        os: darwin
    sha256: bb
    uri: https://example.org/1.2.3/zuulbuild-1.2.3-darwin-arm64.tar.gz
  shortDescription: Look after builds of Zuul v2 jobs
  version: v1.2.3
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("manifest differs (-want +got):\n%s", diff)
	}
}

func TestDocument(t *testing.T) {
	d := newDocument("1.2.3", time.Unix(1000, 0), testPrograms(), testLicences())
	type contents struct{ ID, Version, File, Licence, Source, Locator string }
	var packages []contents
	identifiers := map[string]bool{documentID: true}
	for _, p := range d.Packages {
		c := contents{ID: p.SPDXID, Version: p.VersionInfo, File: p.PackageFileName, Licence: p.LicenseConcluded, Source: p.SourceInfo}
		if len(p.ExternalRefs) > 0 {
			c.Locator = p.ExternalRefs[0].Locator
		}
		packages = append(packages, c)
		if identifiers[p.SPDXID] || !regexp.MustCompile(`^SPDXRef-[A-Za-z0-9.-]+$`).MatchString(p.SPDXID) {
			t.Errorf("identifier %q is taken or none", p.SPDXID)
		}
		identifiers[p.SPDXID] = true
	}
	want := []contents{
		{"SPDXRef-Program-linux-amd64", "1.2.3", "zuulbuild-1.2.3-linux-amd64.tar.gz", "Apache-2.0", "", ""},
		{"SPDXRef-Program-darwin-arm64", "1.2.3", "zuulbuild-1.2.3-darwin-arm64.tar.gz", "Apache-2.0", "", ""},
		{"SPDXRef-Module-example.org--Is-5f-Now-v2.0.0-2b-incompatible", "v2.0.0+incompatible", "", "BSD-3-Clause AND MIT", "",
			"pkg:golang/example.org/is_now@v2.0.0%2Bincompatible"},
		{"SPDXRef-Module-github.com--google--uuid-v1.6.0", "v1.6.0", "", "BSD-3-Clause", "go.sum: h1:uuid=", "pkg:golang/github.com/google/uuid@v1.6.0"},
		{"SPDXRef-Module-stdlib-1.26.8", "1.26.8", "", "BSD-3-Clause", "", "pkg:golang/stdlib@1.26.8"},
	}
	if diff := cmp.Diff(want, packages); diff != "" {
		t.Errorf("packages differ (-want +got):\n%s", diff)
	}
	relations := map[string]int{}
	for _, relation := range d.Relationships {
		if !identifiers[relation.Element] || !identifiers[relation.Related] {
			t.Errorf("relation of something that is not there: %+v", relation)
		}
		relations[relation.Element+" "+relation.Type]++
	}
	wantRelations := map[string]int{documentID + " DESCRIBES": 2, want[0].ID + " DEPENDS_ON": 2, want[1].ID + " DEPENDS_ON": 3}
	if diff := cmp.Diff(wantRelations, relations); diff != "" {
		t.Errorf("relations differ (-want +got):\n%s", diff)
	}
	if d.CreationInfo.Created != "1970-01-01T00:16:40Z" || !strings.HasPrefix(d.DocumentNamespace, "https://zuulbuild.dev/spdx/zuulbuild-1.2.3-") {
		t.Errorf("created %s, namespace %s", d.CreationInfo.Created, d.DocumentNamespace)
	}
	content, err := encodeDocument(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`"spdxVersion": "SPDX-2.3"`, `"dataLicense": "CC0-1.0"`, `"SPDXID": "SPDXRef-DOCUMENT"`, `"filesAnalyzed": false`} {
		if !bytes.Contains(content, []byte(line)) {
			t.Errorf("the document lacks %s", line)
		}
	}
}

func TestCheckLicence(t *testing.T) {
	mit, notice := licenceFile{name: "LICENSE", identifiers: []string{"MIT"}}, licenceFile{name: "NOTICE", notice: true}
	tests := map[string]struct {
		files []licenceFile
		want  string // of the error
	}{
		"allowed":              {[]licenceFile{mit, {name: "b/COPYING", identifiers: []string{"Apache-2.0", "ISC"}}, notice}, ""},
		"none":                 {nil, "example.org/m v1.0.0 has no licence file"},
		"only a notice":        {[]licenceFile{notice}, "has no licence file"},
		"unknown":              {[]licenceFile{mit, {name: "b/LICENSE"}}, "example.org/m v1.0.0: b/LICENSE is no licence that is known"},
		"GPL":                  {[]licenceFile{{name: "COPYING", identifiers: []string{"GPL-3.0"}}}, "COPYING is GPL-3.0, which is not among"},
		"AGPL beside one more": {[]licenceFile{{name: "LICENSE", identifiers: []string{"AGPL-3.0", "MIT"}}}, "LICENSE is AGPL-3.0, which is not among"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := licensed{module: module{"example.org/m", "v1.0.0"}, files: test.files}.check()
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestIdentify(t *testing.T) {
	own, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	const gpl = "This program is free software: you can redistribute it and/or modify it under the terms of the GNU General Public License as published by the " +
		"Free Software Foundation, either version 3 of the License, or (at your option) any later version.\n\nThis program is distributed in the hope that it " +
		"will be useful, but WITHOUT ANY WARRANTY; without even the implied warranty of MERCHANTABILITY or FITNESS FOR A PARTICULAR PURPOSE.  See the GNU " +
		"General Public License for more details.\n\nYou should have received a copy of the GNU General Public License along with this program.  If not, see " +
		"<https://www.gnu.org/licenses/>.\n"
	tests := map[string]struct {
		text string
		want []string
	}{
		"our own":           {string(own), []string{"Apache-2.0"}},
		"nothing":           {"", nil},
		"something else":    {"All rights reserved. Nobody may do anything with this.", nil},
		"only an address":   {"See https://www.apache.org/licenses/LICENSE-2.0", nil},
		"mostly other text": {strings.Repeat("Nobody on board of an aeroplane may use it. ", 1000) + string(own), nil},
		"GPL":               {gpl, []string{"GPL-3.0-or-later"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, identify([]byte(test.text))); diff != "" {
				t.Errorf("licences differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadLicenceFiles(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{
		"LICENSE", "LICENCE.txt", "UNLICENSE", "copying", "COPYING.LESSER", "License-MIT.md", "LICENSES", "NOTICE.txt", // taken
		"license.go", "licenses_test.go", "README.md", "relicensed", "notices.go", "PATENTS",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "licenses"), 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := readLicenceFiles(filepath.Dir(root), root)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, file := range files {
		got[strings.TrimPrefix(file.name, filepath.Base(root)+"/")] = file.notice
	}
	want := map[string]bool{
		"LICENSE": false, "LICENCE.txt": false, "UNLICENSE": false, "copying": false, "COPYING.LESSER": false, "License-MIT.md": false, "LICENSES": false,
		"NOTICE.txt": true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files differ (-want +got):\n%s", diff)
	}
}

func TestCovered(t *testing.T) {
	for _, p := range testPrograms() {
		if err := covered(p.info, testLicences()); err != nil {
			t.Error(err)
		}
	}
	err := covered(testPrograms()[1].info, testLicences()[1:])
	if err == nil || !strings.HasPrefix(err.Error(), "example.org/Is_Now v2.0.0+incompatible is linked") {
		t.Errorf("error %v, want the module that is missing", err)
	}
}

func TestLicenceText(t *testing.T) {
	line := strings.Repeat("=", 80)
	want := `What the programs of zuulbuild 1.2.3 consist of, and its licences. Their texts follow.

example.org/Is_Now      v2.0.0+incompatible  BSD-3-Clause AND MIT
github.com/google/uuid  v1.6.0               BSD-3-Clause
stdlib                  1.26.8               BSD-3-Clause

` + line + `
example.org/Is_Now/COPYING

of MIT

` + line + `
example.org/Is_Now/LICENSE
github.com/google/uuid/LICENSE
stdlib/LICENSE

of BSD

` + line + `
example.org/Is_Now/NOTICE

a notice
`
	if diff := cmp.Diff(want, licenceText("1.2.3", testLicences())); diff != "" {
		t.Errorf("text differs (-want +got):\n%s", diff)
	}
}
