package buildpages

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"time"
)

//go:embed assets
var assetFiles embed.FS

// asset is an embedded file and the fingerprint of its content.
type asset struct {
	content     []byte
	fingerprint string
}

var assets = loadAssets()

func loadAssets() map[string]asset {
	entries, err := assetFiles.ReadDir("assets")
	if err != nil {
		panic(err) // embedded: cannot happen
	}
	loaded := map[string]asset{}
	for _, entry := range entries {
		content, err := assetFiles.ReadFile("assets/" + entry.Name())
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(content)
		loaded[entry.Name()] = asset{content, hex.EncodeToString(sum[:8])}
	}
	return loaded
}

// assetPath is the path of an asset relative to /, with its fingerprint, so that it may be cached for ever.
func assetPath(file string) string {
	return "assets/" + file + "?v=" + assets[file].fingerprint
}

// serveAsset answers /assets/FILE. While two versions of the server run side by side a page of one may ask the other for its assets: only an
// answer that has the fingerprint asked for is kept for ever.
func serveAsset(w http.ResponseWriter, r *http.Request) {
	file, known := assets[r.PathValue("file")]
	if !known {
		writeMessage(w, r, http.StatusNotFound, "No such file", "There is no asset of this name.")
		return
	}
	header := w.Header()
	header.Set("ETag", `"`+file.fingerprint+`"`)
	if r.URL.Query().Get("v") == file.fingerprint {
		header.Set("Cache-Control", "public, max-age=31536000, immutable")
	} else {
		header.Set("Cache-Control", "no-cache")
	}
	http.ServeContent(w, r, r.PathValue("file"), time.Time{}, bytes.NewReader(file.content))
}
