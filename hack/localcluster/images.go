package localcluster

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const (
	pauseVersion = "1"
	pauseImage   = "zuulbuild.test/pause:" + pauseVersion
	// BusyboxImage has a shell and Debian's busybox applets. It is on every node; nothing can be pulled, so Pods that
	// use it must not say imagePullPolicy: Always. Its `wget -T` crashes, as Debian's static build has it: use `timeout`.
	BusyboxImage = "zuulbuild.test/busybox:1"
)

// entry is one file, folder or link of an image's only layer.
type entry struct {
	path    string // relative, as archives have it
	mode    int64
	content []byte
	link    string // target of a symbolic link
	folder  bool
}

// writeStockImages writes the archives of the images every node gets and returns their paths.
func (c *Cluster) writeStockImages(ctx context.Context) ([]string, error) {
	pause, err := os.ReadFile(c.tools.path("pause"))
	if err != nil {
		return nil, err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	applets, err := run(ctx, "", busybox, "--list")
	if err != nil {
		return nil, err
	}
	images := map[string]struct {
		entries []entry
		config  v1.Config
	}{
		pauseImage: {pauseEntries(pause), v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"}},
		BusyboxImage: {busyboxEntries(program, strings.Fields(applets)), v1.Config{
			Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}},
	}
	var archives []string
	for reference, image := range images {
		base, _, _ := strings.Cut(filepath.Base(reference), ":")
		archive := filepath.Join(c.folder, "images", base+".tar")
		if err := writeImage(archive, reference, image.entries, image.config); err != nil {
			return nil, fmt.Errorf("image %s: %w", reference, err)
		}
		archives = append(archives, archive)
	}
	return archives, nil
}

func pauseEntries(program []byte) []entry {
	return []entry{{path: "pause", mode: 0o755, content: program}}
}

// busyboxEntries lays out a small system: any user may run in it, /tmp is everyone's.
func busyboxEntries(program []byte, applets []string) []entry {
	entries := []entry{
		{path: "bin/", mode: 0o755, folder: true},
		{path: "bin/busybox", mode: 0o755, content: program},
		{path: "etc/", mode: 0o755, folder: true},
		{path: "etc/passwd", mode: 0o644, content: []byte("root:x:0:0:root:/root:/bin/sh\nbuild:x:1000:1000:build:/home/build:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")},
		{path: "etc/group", mode: 0o644, content: []byte("root:x:0:\nbuild:x:1000:\nnogroup:x:65534:\n")},
		{path: "home/", mode: 0o755, folder: true},
		{path: "home/build/", mode: 0o777, folder: true},
		{path: "root/", mode: 0o700, folder: true},
		{path: "sbin", link: "bin"},
		{path: "tmp/", mode: 0o1777, folder: true},
		{path: "usr/", mode: 0o755, folder: true},
		{path: "usr/bin", link: "../bin"},
		{path: "usr/sbin", link: "../bin"},
		{path: "var/", mode: 0o755, folder: true},
		{path: "var/tmp/", mode: 0o1777, folder: true},
	}
	for _, applet := range applets {
		if applet != "busybox" {
			entries = append(entries, entry{path: "bin/" + applet, link: "busybox"})
		}
	}
	return entries
}

// writeImage writes a docker-archive of one layer. The same entries make the same image, so importing again is cheap.
func writeImage(path, reference string, entries []entry, config v1.Config) error {
	content, err := layerArchive(entries)
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		tarball.WithCompression(compression.None))
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	image, err = mutate.ConfigFile(image, withPlatform(image, config))
	if err != nil {
		return err
	}
	tag, err := name.NewTag(reference, name.StrictValidation)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return tarball.WriteToFile(path, tag, image)
}

func withPlatform(image v1.Image, config v1.Config) *v1.ConfigFile {
	file, err := image.ConfigFile()
	if err != nil {
		panic(err) // an image in memory always has one
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	return file
}

func layerArchive(entries []entry) ([]byte, error) {
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, e := range entries {
		header := &tar.Header{Name: e.path, Mode: e.mode, Size: int64(len(e.content)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		switch {
		case e.folder:
			header.Typeflag = tar.TypeDir
		case e.link != "":
			header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, e.link, 0o777
		}
		if err := writer.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := writer.Write(e.content); err != nil {
			return nil, err
		}
	}
	err := writer.Close()
	return buffer.Bytes(), err
}

// ImportImage puts the images of an archive (docker-archive or OCI layout, as a tar file) on every real node.
func (c *Cluster) ImportImage(ctx context.Context, archive string) error {
	var imports []func(context.Context) error
	for _, node := range c.Nodes() {
		imports = append(imports, func(ctx context.Context) error { return node.importImage(ctx, archive) })
	}
	return together(ctx, imports...)
}

func (n *Node) importImage(ctx context.Context, archive string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	// Through standard input, as the node may not see the file.
	command := n.Command(ctx, n.tool("ctr"), "--address", containerdSocket, "--namespace", "k8s.io", "images", "import", "-")
	command.Stdin = file
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("import %s on %s: %w: %s", archive, n.Name(), err, lastLines(string(output), 5))
	}
	return nil
}
