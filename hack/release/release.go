package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"zuulbuild.dev/zuulbuild/hack/reproducible"
)

// release is one that is being made.
type release struct {
	options
	date      time.Time
	folder    string // where the artifacts are
	programs  string // where the programs are, each as OS-ARCHITECTURE/zuulbuild
	licences  []licensed
	notices   []byte // all of licencesFile
	linked    []program
	artifacts []artifact
}

// artifact is a file of the release.
type artifact struct {
	name, about string
	sum         string // SHA-256, in hexadecimal
	size        int
}

// write adds a file to the release.
func (r *release) write(name, about string, content []byte) error {
	if err := os.WriteFile(filepath.Join(r.folder, name), content, 0o644); err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	r.artifacts = append(r.artifacts, artifact{name: name, about: about, sum: hex.EncodeToString(sum[:]), size: len(content)})
	return nil
}

// take adds a file that another program has written into the folder.
func (r *release) take(name, about string) error {
	content, err := os.ReadFile(filepath.Join(r.folder, name))
	if err != nil {
		return err
	}
	return r.write(name, about, content)
}

// execute runs a program, which dates what it makes as the release, and returns what it printed.
func (r *release) execute(ctx context.Context, name string, arguments ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, name, arguments...)
	var errorText bytes.Buffer
	command.Stderr = &errorText
	command.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.date.Unix()))
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(arguments, " "), err, errorText.Bytes())
	}
	return output, nil
}

func (r *release) readLicences(ctx context.Context) (err error) {
	r.licences, err = readLicences(ctx)
	r.notices = []byte(licenceText(r.version, r.licences))
	return err
}

func (r *release) buildPrograms(ctx context.Context) error {
	for _, platform := range platforms {
		if err := r.buildProgram(ctx, platform); err != nil {
			return err
		}
	}
	return nil
}

// buildProgram makes an archive of the program for a platform and the licences of all it consists of.
func (r *release) buildProgram(ctx context.Context, platform reproducible.Platform) error {
	folder := filepath.Join(r.programs, platform.OS+"-"+platform.Architecture)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	file := filepath.Join(folder, "zuulbuild")
	if err := reproducible.Program(ctx, platform, r.version, file); err != nil {
		return err
	}
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return err
	}
	if err := covered(info, r.licences); err != nil {
		return fmt.Errorf("%s: %w", platform, err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	own, err := os.ReadFile("LICENSE")
	if err != nil {
		return err
	}
	if content, err = programArchive(content, own, r.notices, r.date); err != nil {
		return err
	}
	name := fmt.Sprintf("zuulbuild-%s-%s-%s.tar.gz", r.version, platform.OS, platform.Architecture)
	if err := r.write(name, "the program for "+platform.String()+", which is the kubectl plugin too", content); err != nil {
		return err
	}
	r.linked = append(r.linked, program{platform: platform, archive: r.artifacts[len(r.artifacts)-1], info: info})
	return nil
}

func programArchive(program, licence, notices []byte, date time.Time) ([]byte, error) {
	content, err := reproducible.Tar([]reproducible.File{
		{Name: "LICENSE", Mode: 0o644, Content: licence}, {Name: licencesFile, Mode: 0o644, Content: notices}, {Name: "zuulbuild", Mode: 0o755, Content: program},
	}, date)
	if err != nil {
		return nil, err
	}
	return reproducible.Gzip(content)
}

// writeImage makes the container image of the programs for Linux that were built.
func (r *release) writeImage(ctx context.Context) error {
	name := fmt.Sprintf("zuulbuild-%s-image.tar", r.version)
	if _, err := r.execute(ctx, "go", "run", "./hack/image", "--version", r.version, "--reference", r.image, "--programs", r.programs,
		"--licences", filepath.Join(r.folder, licencesFile), "--output", filepath.Join(r.folder, name)); err != nil {
		return err
	}
	return r.take(name, "the container image for amd64 and arm64, in the layout of the OCI")
}

// writeChart packages the chart, at the version of the release.
func (r *release) writeChart(ctx context.Context) error {
	if _, err := r.execute(ctx, r.helm, "package", "charts/zuulbuild", "--version", r.version, "--app-version", r.version, "--destination", r.folder); err != nil {
		return err
	}
	return r.take(r.chartName(), "the Helm chart")
}

func (r *release) chartName() string { return fmt.Sprintf("zuulbuild-%s.tgz", r.version) }

// exampleServer stands in install.yaml for the Gearman server of whoever installs it.
const exampleServer = "gearman.example.org:4730"

// writeManifest renders the chart for those who have no Helm.
func (r *release) writeManifest(ctx context.Context) error {
	rendered, err := r.execute(ctx, r.helm, "template", "zuulbuild", filepath.Join(r.folder, r.chartName()), "--namespace", "zuulbuild-system", "--no-hooks",
		"--set", "image.repository="+r.image, "--set", "gearman.servers[0].name=zuul", "--set", "gearman.servers[0].address="+exampleServer)
	if err != nil {
		return err
	}
	if !bytes.Contains(rendered, []byte(exampleServer)) {
		return errors.New("the rendered chart does not name the Gearman server " + exampleServer)
	}
	return r.write("install.yaml", "all objects of an installation, for kubectl apply", append([]byte(installHeader(r.version, r.image)), rendered...))
}

// installHeader is what stands before the objects of the chart: what to do, and the namespace, which Helm leaves to its caller.
func installHeader(version, image string) string {
	return fmt.Sprintf(`# zuulbuild %[1]s without Helm. Replace %[2]s by the address of your Gearman server (and the port 4730 of the NetworkPolicy, where it is
# another) and %[3]s by where you have pushed the image to; then: kubectl apply -f install.yaml
#
# It is the chart as it is by default: jobs and builds are in namespace zuulbuild-builds, the only one the operator sees, whose NetworkPolicy lets builds out
# to DNS alone. Add what they need to its egress.
apiVersion: v1
kind: Namespace
metadata:
  name: zuulbuild-system
  labels:
    pod-security.kubernetes.io/enforce: restricted
`, version, exampleServer, image)
}

// writePlugin makes the manifest by which krew finds the kubectl plugin.
func (r *release) writePlugin(context.Context) error {
	content, err := pluginManifest(r.version, r.url, r.linked)
	if err != nil {
		return err
	}
	return r.write("zuulbuild.yaml", "the manifest of the kubectl plugin, for krew", content)
}

// writeContents makes the list of what the programs consist of.
func (r *release) writeContents(context.Context) error {
	content, err := encodeDocument(newDocument(r.version, r.date, r.linked, r.licences))
	if err != nil {
		return err
	}
	return r.write(fmt.Sprintf("zuulbuild-%s.spdx.json", r.version), "what the programs consist of, in SPDX 2.3", content)
}

func (r *release) writeLicences(context.Context) error {
	return r.write(licencesFile, "the licences of all that the programs consist of", r.notices)
}

// writeChecksums comes last, and makes sure that it tells of every file there is.
func (r *release) writeChecksums(context.Context) error {
	entries, err := os.ReadDir(r.folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !slices.ContainsFunc(r.artifacts, func(a artifact) bool { return a.name == entry.Name() }) {
			return fmt.Errorf("%s is in the folder of the release and was put there by nothing that is known", entry.Name())
		}
	}
	return r.write(sumsFile, "for sha256sum --check", []byte(checksums(r.artifacts)))
}

// sumsFile is in every release, and tells one from another folder.
const sumsFile = "SHA256SUMS"

// checksums is the file that sha256sum --check reads, by name.
func checksums(artifacts []artifact) string {
	sorted := slices.SortedFunc(slices.Values(artifacts), func(a, b artifact) int { return strings.Compare(a.name, b.name) })
	var text strings.Builder
	for _, a := range sorted {
		fmt.Fprintf(&text, "%s  %s\n", a.sum, a.name)
	}
	return text.String()
}
