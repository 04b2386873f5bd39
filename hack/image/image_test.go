package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func testBuilds() []build {
	return []build{
		{platform: v1.Platform{OS: "linux", Architecture: "amd64"}, program: []byte("for amd64")},
		{platform: v1.Platform{OS: "linux", Architecture: "arm64"}, program: []byte("for arm64")},
	}
}

func testIndex(t *testing.T) v1.ImageIndex {
	t.Helper()
	index, err := newIndex(testBuilds(), []byte("authorities"), licenceFiles([]byte("own"), []byte("others")), "1.2.3", time.Unix(1000, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	return index
}

// Each image holds the program of its platform, runs as an ordinary user, and has nothing else that could run.
func TestImages(t *testing.T) {
	index := testIndex(t)
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range testBuilds() {
		descriptor := manifest.Manifests[i]
		if got := descriptor.Platform.String(); got != b.platform.String() {
			t.Errorf("image %d is for %s rather than %s", i, got, b.platform)
		}
		image, err := index.Image(descriptor.Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.Architecture != b.platform.Architecture || config.Config.User != "65532:65532" || config.Config.Labels["org.opencontainers.image.version"] != "1.2.3" {
			t.Errorf("%s: configuration %+v", b.platform, config)
		}
		want := map[string]string{
			"etc": "drwxr-xr-x", "etc/group": "-rw-r--r--", "etc/passwd": "-rw-r--r--", "etc/ssl": "drwxr-xr-x", "etc/ssl/certs": "drwxr-xr-x",
			"etc/ssl/certs/ca-certificates.crt": "-rw-r--r-- authorities", "zuulbuild": "-rwxr-xr-x " + string(b.program),
			"licenses": "drwxr-xr-x", "licenses/LICENSE": "-rw-r--r-- own", "licenses/licences.txt": "-rw-r--r-- others",
		}
		if diff := cmp.Diff(want, contents(t, image)); diff != "" {
			t.Errorf("%s: files differ (-want +got):\n%s", b.platform, diff)
		}
	}
}

// contents are modes by name, and what is in the files the test made.
func contents(t *testing.T, image v1.Image) map[string]string {
	t.Helper()
	stream := mutate.Extract(image)
	defer stream.Close()
	files := map[string]string{}
	for reader := tar.NewReader(stream); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 {
			t.Errorf("%s belongs to %d:%d", header.Name, header.Uid, header.Gid)
		}
		files[header.Name] = header.FileInfo().Mode().String()
		if strings.HasPrefix(string(content), "for ") || slices.Contains([]string{"authorities", "own", "others"}, string(content)) {
			files[header.Name] += " " + string(content)
		}
	}
}

func TestArchive(t *testing.T) {
	var archives [2][]byte
	for i := range archives {
		file := filepath.Join(t.TempDir(), "image.tar")
		if err := writeArchive(file, "zuulbuild.dev/zuulbuild", "1.2.3", testIndex(t)); err != nil {
			t.Fatal(err)
		}
		var err error
		if archives[i], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same image was written as different archives")
	}
	index, err := layout.ImageIndexFromPath(unpack(t, archives[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if name := manifest.Manifests[0].Annotations["io.containerd.image.name"]; name != "zuulbuild.dev/zuulbuild:1.2.3" {
		t.Errorf("the archive calls the image %q", name)
	}
}

// unpack writes an archive's files to a folder.
func unpack(t *testing.T, archive []byte) string {
	t.Helper()
	folder := t.TempDir()
	for reader := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return folder
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(folder, header.Name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefusals(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.crt")
	tests := map[string]struct {
		options options
		want    string
	}{
		"no certificates":  {options{certificates: none, platforms: "linux/amd64"}, "install the package ca-certificates"},
		"no such platform": {options{platforms: "plan9/amd64"}, `--platforms "plan9/amd64"`},
		"no program there": {options{platforms: "linux/arm64", programs: filepath.Dir(none)}, "linux-arm64/zuulbuild: no such file"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := test.options.run(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestDockerfileAgrees(t *testing.T) {
	content, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"USER " + user, fmt.Sprintf("ENTRYPOINT [%q]", entrypoint), "COPY hack/image/rootfs/ /",
		"COPY --from=build " + certificates + " " + certificates, "COPY --from=build /zuulbuild " + entrypoint, "FROM scratch",
		"COPY LICENSE " + licenceDir, "COPY --from=build /licences.txt " + licenceDir,
	} {
		if !strings.Contains(string(content), "\n"+line+"\n") {
			t.Errorf("the Dockerfile lacks the line %q", line)
		}
	}
	got := map[string]string{}
	for line := range strings.Lines(string(content)) {
		if label, ok := strings.CutPrefix(strings.TrimSpace(line), "LABEL "); ok {
			name, value, _ := strings.Cut(label, "=")
			got[name] = value
		}
	}
	if diff := cmp.Diff(labels("$VERSION"), got); diff != "" {
		t.Errorf("labels differ (-make image +Dockerfile):\n%s", diff)
	}
}
