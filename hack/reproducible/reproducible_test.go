package reproducible

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDate(t *testing.T) {
	tests := map[string]struct {
		text, want string
	}{
		"none":      {"", "1970-01-01T00:00:00Z"},
		"seconds":   {"1760000000", "2025-10-09T08:53:20Z"},
		"no number": {"today", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SOURCE_DATE_EPOCH", test.text)
			date, err := Date()
			if test.want == "" {
				if err == nil || !strings.Contains(err.Error(), `SOURCE_DATE_EPOCH "today"`) {
					t.Errorf("error %v", err)
				}
				return
			}
			if got := date.Format(time.RFC3339); err != nil || got != test.want {
				t.Errorf("%s, %v; want %s", got, err, test.want)
			}
		})
	}
}

func TestTar(t *testing.T) {
	files := []File{{"bin/", 0o755, nil}, {"bin/program", 0o755, []byte("program")}, {"LICENSE", 0o644, []byte("licence")}}
	content, err := Tar(files, time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	if end := make([]byte, 1024); !bytes.HasSuffix(content, end) {
		t.Error("the archive has no end: some programs take it for one that was cut off")
	}
	var got []File
	for reader := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Uname != "" || !header.ModTime.Equal(time.Unix(1000, 0)) {
			t.Errorf("%s belongs to %d (%q) and is of %s", header.Name, header.Uid, header.Uname, header.ModTime)
		}
		text, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) == 0 {
			text = nil
		}
		got = append(got, File{header.Name, header.Mode, text})
	}
	if diff := cmp.Diff(files, got); diff != "" {
		t.Errorf("files differ (-want +got):\n%s", diff)
	}
}

func TestGzip(t *testing.T) {
	content, err := Gzip([]byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	reader, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if reader.Name != "" || !reader.ModTime.IsZero() {
		t.Errorf("the header tells the name %q and the time %s", reader.Name, reader.ModTime)
	}
	if text, err := io.ReadAll(reader); err != nil || string(text) != "text" {
		t.Errorf("read %q, %v", text, err)
	}
}

// The program, built twice: the same bytes, static, and without a word of where it was built.
func TestProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("links the program twice")
	}
	var programs [2][]byte
	for i := range programs {
		output := filepath.Join(t.TempDir(), "zuulbuild")
		if err := Program(t.Context(), Platform{"linux", runtime.GOARCH}, "1.2.3", output); err != nil {
			t.Fatal(err)
		}
		var err error
		if programs[i], err = os.ReadFile(output); err != nil {
			t.Fatal(err)
		}
	}
	program := programs[0]
	if !bytes.Equal(program, programs[1]) {
		t.Error("two builds gave different programs")
	}
	_, here, _, _ := runtime.Caller(0)
	if root := filepath.Join(filepath.Dir(here), "..", ".."); bytes.Contains(program, []byte(root+"/")) {
		t.Errorf("the program holds the path %s", root)
	}
	binary, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	for _, segment := range binary.Progs {
		if segment.Type == elf.PT_INTERP {
			t.Error("the program needs a dynamic linker")
		}
	}
}
