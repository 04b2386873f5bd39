package dashboard

import (
	"context"
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// frame is what Chromium may take of the height of its window for itself.
const frame = 200

// Photograph has Chromium take a picture of the page, as PNG.
func (p *Page) Photograph(ctx context.Context, file string) error {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		return fmt.Errorf("%w: the Debian package of that name has it", err)
	}
	folder, err := os.MkdirTemp("", "zuulbuild-dashboard-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	page, screenshot := filepath.Join(folder, "page.html"), filepath.Join(folder, "screenshot.png")
	if err := os.WriteFile(page, p.HTML, 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, chromium, "--headless", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1",
		"--no-sandbox", // root has none, and the page is ours
		"--user-data-dir="+filepath.Join(folder, "profile"), fmt.Sprintf("--window-size=%d,%d", p.Width, p.Height+frame),
		"--screenshot="+screenshot, "file://"+page)
	command.WaitDelay = 5 * time.Second // its own processes have its outputs too
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", chromium, err, output)
	}
	return crop(screenshot, file, image.Rect(0, 0, p.Width, p.Height))
}

// crop writes a part of a picture to another file, as small as PNG can be.
func crop(from, to string, part image.Rectangle) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	whole, err := png.Decode(source)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	picture := image.NewNRGBA(part)
	draw.Draw(picture, part, whole, part.Min, draw.Src)
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	if err := encoder.Encode(target, picture); err != nil {
		_ = target.Close()
		return err
	}
	return target.Close()
}
