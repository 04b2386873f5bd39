package main

import (
	"bytes"
	"embed"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"zuulbuild.dev/zuulbuild/hack/reproducible"
)

// rootfs is what every image has beside the program; the Dockerfile copies the same folder.
//
//go:embed rootfs
var rootfs embed.FS

// What the Dockerfile says too; a test compares them.
const (
	user       = "65532:65532"
	entrypoint = "/zuulbuild"
	licenceDir = "/licenses/" // where those look who check images, in their spelling
)

// build is the program for one platform.
type build struct {
	platform v1.Platform
	program  []byte
}

// newIndex makes an image of each build and puts them together.
func newIndex(builds []build, certificates []byte, licences []reproducible.File, version string, created time.Time) (v1.ImageIndex, error) {
	base, err := baseFiles(certificates)
	if err != nil {
		return nil, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, b := range builds {
		image, err := newImage(b, base, licences, version, created)
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &b.platform}})
	}
	return index, nil
}

// labels say what an image is.
func labels(version string) map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":    "zuulbuild",
		"org.opencontainers.image.version":  version,
		"org.opencontainers.image.licenses": "Apache-2.0",
	}
}

// newImage has two layers: what changes with Debian's authorities, and what changes with the program.
func newImage(b build, base, licences []reproducible.File, version string, created time.Time) (v1.Image, error) {
	image := mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1)
	program := reproducible.File{Name: strings.TrimPrefix(entrypoint, "/"), Mode: 0o755, Content: b.program}
	for _, files := range [][]reproducible.File{base, append(slices.Clone(licences), program)} {
		layer, err := newLayer(files, created)
		if err != nil {
			return nil, err
		}
		image, err = mutate.Append(image, mutate.Addendum{Layer: layer, MediaType: types.OCILayer, History: v1.History{Created: v1.Time{Time: created}, CreatedBy: "make image"}})
		if err != nil {
			return nil, err
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = b.platform.OS, b.platform.Architecture, v1.Time{Time: created}
	config.Config = v1.Config{User: user, Entrypoint: []string{entrypoint}, WorkingDir: "/", Labels: labels(version)}
	return mutate.ConfigFile(image, config)
}

// licenceFiles are what has to be passed on with the program: its own licence, and those of all it consists of.
func licenceFiles(own, others []byte) []reproducible.File {
	return []reproducible.File{
		{Name: strings.TrimPrefix(licenceDir, "/"), Mode: 0o755},
		{Name: strings.TrimPrefix(licenceDir, "/") + "LICENSE", Mode: 0o644, Content: own},
		{Name: strings.TrimPrefix(licenceDir, "/") + "licences.txt", Mode: 0o644, Content: others},
	}
}

// baseFiles are rootfs and the authorities, in the order of their names.
func baseFiles(certificates []byte) ([]reproducible.File, error) {
	var files []reproducible.File
	err := fs.WalkDir(rootfs, "rootfs", func(name string, entry fs.DirEntry, err error) error {
		relative := strings.TrimPrefix(strings.TrimPrefix(name, "rootfs"), "/")
		switch {
		case err != nil || relative == "":
			return err
		case entry.IsDir():
			files = append(files, reproducible.File{Name: relative + "/", Mode: 0o755})
			return nil
		}
		content, err := rootfs.ReadFile(name)
		files = append(files, reproducible.File{Name: relative, Mode: 0o644, Content: content})
		return err
	})
	if err != nil || certificates == nil {
		return files, err
	}
	for folder := range strings.SplitSeq("etc/ssl/,etc/ssl/certs/", ",") {
		files = append(files, reproducible.File{Name: folder, Mode: 0o755})
	}
	return append(files, reproducible.File{Name: "etc/ssl/certs/ca-certificates.crt", Mode: 0o644, Content: certificates}), nil
}

func newLayer(files []reproducible.File, created time.Time) (v1.Layer, error) {
	content, err := reproducible.Tar(files, created)
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		tarball.WithMediaType(types.OCILayer))
}

// writeArchive writes an OCI layout as one tar file. containerd takes the image's name from the first of the annotations, others the tag from the second.
func writeArchive(output, reference, tag string, index v1.ImageIndex) error {
	folder, err := os.MkdirTemp("", "zuulbuild-layout-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	target, err := layout.Write(folder, empty.Index)
	if err != nil {
		return err
	}
	names := map[string]string{"io.containerd.image.name": reference + ":" + tag, "org.opencontainers.image.ref.name": tag}
	if err := target.AppendIndex(index, layout.WithAnnotations(names)); err != nil {
		return err
	}
	content, err := archiveFolder(folder)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(output), 0o755); err != nil {
		return err
	}
	return os.WriteFile(output, content, 0o644)
}

// archiveFolder is a tar file of a folder's files, sorted by name and without anything that depends on the machine.
func archiveFolder(folder string) ([]byte, error) {
	var files []reproducible.File
	err := fs.WalkDir(os.DirFS(folder), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(folder, name))
		files = append(files, reproducible.File{Name: path.Clean(name), Mode: 0o644, Content: content})
		return err
	})
	if err != nil {
		return nil, err
	}
	return reproducible.Tar(files, time.Unix(0, 0))
}
