// Package reproducible makes what images and releases are put together from: the same bytes from the same sources, wherever and whenever that is done.
package reproducible

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Platform is what a program is built for, in Go's words.
type Platform struct{ OS, Architecture string }

func (p Platform) String() string { return p.OS + "/" + p.Architecture }

// Date is SOURCE_DATE_EPOCH, as https://reproducible-builds.org has it, or 1970.
func Date() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH %q: seconds since 1970 were expected", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// Program builds zuulbuild of the module in the working folder as the file output: static, and without a word of where it was built. version is what
// `zuulbuild --version` says.
func Program(ctx context.Context, platform Platform, version, output string) error {
	// The build id would differ between machines, and nothing reads it.
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid= -X main.version="+version,
		"-o", output, "zuulbuild.dev/zuulbuild")
	command.Env = append(os.Environ(), Environment(platform)...)
	if text, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("build for %s: %w\n%s", platform, err, text)
	}
	return nil
}

// Environment has the go command work for a platform, whatever the machine is set to.
func Environment(platform Platform) []string {
	return []string{"CGO_ENABLED=0", "GOOS=" + platform.OS, "GOARCH=" + platform.Architecture, "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT="}
}

// File is a file of an archive; a folder where its name ends with a slash.
type File struct {
	Name    string // relative, as archives have it
	Mode    int64
	Content []byte
}

// Tar is an archive of the files in the order given, which belong to nobody and are as old as date says.
func Tar(files []File, date time.Time) ([]byte, error) {
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, file := range files {
		header := &tar.Header{Name: file.Name, Mode: file.Mode, Size: int64(len(file.Content)), Typeflag: tar.TypeReg, ModTime: date, Format: tar.FormatPAX}
		if strings.HasSuffix(file.Name, "/") {
			header.Typeflag = tar.TypeDir
		}
		if err := writer.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := writer.Write(file.Content); err != nil {
			return nil, err
		}
	}
	if err := writer.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}

// Gzip compresses, with a header that tells no name and no time.
func Gzip(content []byte) ([]byte, error) {
	var buffer bytes.Buffer
	writer, err := gzip.NewWriterLevel(&buffer, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := writer.Write(content); err != nil {
		return nil, err
	}
	if err := writer.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}
