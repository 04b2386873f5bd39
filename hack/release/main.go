// Command release makes everything a release consists of, in one folder: programs, the image, the chart, the manifests of an installation without Helm and
// of the kubectl plugin, a list of what is inside (SBOM), licences and checksums. The same sources, Go version and certificates give the same bytes.
//
// With --licences it only checks the licences of the modules, which takes a second; with --notices it also writes their texts, for images.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"k8s.io/apimachinery/pkg/util/version"

	"zuulbuild.dev/zuulbuild/hack/reproducible"
)

// platforms are what programs are released for. A cluster runs the operator on Linux; on a Mac the same program is the client and the kubectl plugin.
var platforms = []reproducible.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"},
	{OS: "darwin", Architecture: "amd64"}, {OS: "darwin", Architecture: "arm64"}}

type options struct {
	version, output, helm, image, url, notices string
	onlyLicences                               bool
}

func main() {
	o := options{}
	flag.StringVar(&o.version, "version", "", "version of all that is released, such as 1.2.3")
	flag.StringVar(&o.output, "output", "", "the folder to write, which is replaced")
	flag.StringVar(&o.helm, "helm", "helm", "the program Helm")
	flag.StringVar(&o.image, "image", "zuulbuild.dev/zuulbuild", "name of the image, without its tag")
	flag.StringVar(&o.url, "url", "", "where people will find the files; default: https://zuulbuild.dev/releases/VERSION")
	flag.BoolVar(&o.onlyLicences, "licences", false, "only check the licences of the modules, and list them")
	flag.StringVar(&o.notices, "notices", "", "only write "+licencesFile+", the licences of all that the programs consist of, as this `file`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	run := o.run
	switch {
	case o.onlyLicences:
		run = printLicences
	case o.notices != "":
		run = o.writeNotices
	}
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// run makes the release beside its place and puts it there when it is whole.
func (o options) run(ctx context.Context) error {
	if _, err := version.ParseSemantic(o.version); err != nil || strings.HasPrefix(o.version, "v") || strings.Contains(o.version, "+") { // no tag of an image has a +
		return fmt.Errorf("--version %q: a version such as 1.2.3 was expected, as Helm and kubectl's plugins have them", o.version)
	}
	if o.output == "" {
		return errors.New("--output: the folder to write was expected")
	}
	if err := replaceable(o.output); err != nil {
		return err
	}
	if o.url == "" {
		o.url = "https://zuulbuild.dev/releases/" + o.version
	}
	date, err := reproducible.Date()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.output), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(o.output), ".release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	r := release{options: o, date: date, folder: filepath.Join(work, "files"), programs: filepath.Join(work, "programs")}
	if err := os.Mkdir(r.folder, 0o755); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		r.readLicences, r.buildPrograms, r.writeLicences, r.writeImage, r.writeChart, r.writeManifest, r.writePlugin, r.writeContents, r.writeChecksums,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(o.output); err != nil {
		return err
	}
	if err := os.Rename(r.folder, o.output); err != nil {
		return err
	}
	return r.report()
}

// replaceable refuses to replace what is no release.
func replaceable(folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && len(entries) > 0 && !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == sumsFile }) {
		return fmt.Errorf("--output %s: there is something else than a release in it, which would be deleted", folder)
	}
	return err
}

// report tells what was made.
func (r *release) report() error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, a := range r.artifacts {
		_, _ = fmt.Fprintf(table, "%s\t%8.1f KiB\t%s\n", filepath.Join(r.output, a.name), float64(a.size)/1024, a.about)
	}
	return table.Flush()
}

func (o options) writeNotices(ctx context.Context) error {
	licences, err := readLicences(ctx)
	if err != nil {
		return err
	}
	return os.WriteFile(o.notices, []byte(licenceText(o.version, licences)), 0o644)
}

func printLicences(ctx context.Context) error {
	licences, err := readLicences(ctx)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, l := range licences {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", l.path, l.version, l.expression())
	}
	return table.Flush()
}
