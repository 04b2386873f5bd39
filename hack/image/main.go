// Command image builds the program's container image without Docker: static, from scratch, for several platforms, as one tar file in the layout of
// the OCI, which containerd (`ctr images import`), podman, skopeo and Docker 25 and later read. The same sources give the same image, byte for byte. It is
// run at the root of the checkout.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"zuulbuild.dev/zuulbuild/hack/reproducible"
)

// certificates are the authorities that Debian's package ca-certificates writes. Go's crypto/tls looks for them in the image under the same path.
const certificates = "/etc/ssl/certs/ca-certificates.crt"

type options struct {
	reference, version, output, certificates, platforms, programs, licences string
}

func main() {
	o := options{}
	flag.StringVar(&o.reference, "reference", "zuulbuild.dev/zuulbuild", "name of the image, without its tag")
	flag.StringVar(&o.version, "version", "development", "what `zuulbuild --version` says, and the image's tag")
	flag.StringVar(&o.output, "output", "dist/zuulbuild-image.tar", "the archive to write")
	flag.StringVar(&o.certificates, "certificates", certificates, "PEM file of the authorities the program trusts; empty for none")
	flag.StringVar(&o.platforms, "platforms", "linux/amd64,linux/arm64", "platforms to build for")
	flag.StringVar(&o.programs, "programs", "", "`folder` with the programs, each as OS-ARCHITECTURE/zuulbuild; default: build them")
	flag.StringVar(&o.licences, "licences", "", "`file` with the licences of all that the programs consist of; default: collect them")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	digest, err := o.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
	fmt.Printf("%s: %s:%s@%s\n", o.output, o.reference, o.version, digest)
}

func (o options) run(ctx context.Context) (v1.Hash, error) {
	authorities, err := o.readCertificates()
	if err != nil {
		return v1.Hash{}, err
	}
	created, err := reproducible.Date()
	if err != nil {
		return v1.Hash{}, err
	}
	var builds []build
	for _, text := range strings.Split(o.platforms, ",") {
		platform, err := v1.ParsePlatform(text)
		if err != nil || platform.OS != "linux" || platform.Architecture == "" {
			return v1.Hash{}, fmt.Errorf("--platforms %q: linux/ARCHITECTURE was expected", text)
		}
		program, err := o.program(ctx, reproducible.Platform{OS: platform.OS, Architecture: platform.Architecture})
		if err != nil {
			return v1.Hash{}, err
		}
		builds = append(builds, build{platform: *platform, program: program})
	}
	licences, err := o.readLicences(ctx)
	if err != nil {
		return v1.Hash{}, err
	}
	index, err := newIndex(builds, authorities, licences, o.version, created)
	if err != nil {
		return v1.Hash{}, err
	}
	if err := writeArchive(o.output, o.reference, o.version, index); err != nil {
		return v1.Hash{}, err
	}
	return index.Digest()
}

// readCertificates refuses to go on without the file: the image would seem to work, until a server with a certificate of a public authority.
func (o options) readCertificates() ([]byte, error) {
	if o.certificates == "" {
		return nil, nil
	}
	content, err := os.ReadFile(o.certificates)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: install the package ca-certificates, or give --certificates= for an image that trusts only what its configuration names", err)
	}
	return content, err
}

// readLicences reads those of zuulbuild, and of what it consists of as hack/release collects them.
func (o options) readLicences(ctx context.Context) ([]reproducible.File, error) {
	own, err := os.ReadFile("LICENSE")
	if err != nil {
		return nil, err
	}
	file := o.licences
	if file == "" {
		folder, err := os.MkdirTemp("", "zuulbuild-licences-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(folder)
		file = filepath.Join(folder, "licences.txt")
		command := exec.CommandContext(ctx, "go", "run", "./hack/release", "--notices", file, "--version", o.version)
		if text, err := command.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("collect licences: %w\n%s", err, text)
		}
	}
	others, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return licenceFiles(own, others), nil
}

// program is the program for a platform, which is there or is built.
func (o options) program(ctx context.Context, platform reproducible.Platform) ([]byte, error) {
	if o.programs != "" {
		return os.ReadFile(filepath.Join(o.programs, platform.OS+"-"+platform.Architecture, "zuulbuild"))
	}
	folder, err := os.MkdirTemp("", "zuulbuild-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	output := filepath.Join(folder, "zuulbuild")
	if err := reproducible.Program(ctx, platform, o.version, output); err != nil {
		return nil, err
	}
	return os.ReadFile(output)
}
