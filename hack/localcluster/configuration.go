package localcluster

import (
	"embed"
	"fmt"
	"strings"
	"text/template"
)

//go:embed configuration
var configurationFiles embed.FS

// The delimiters leave {{ }} to kwok, whose stages hold templates of its own.
var configuration = template.Must(template.New("").Delims("<<", ">>").Option("missingkey=error").ParseFS(configurationFiles, "configuration/*"))

// render fills one of the files in configuration/.
func render(name string, values any) ([]byte, error) {
	var text strings.Builder
	if err := configuration.ExecuteTemplate(&text, name, values); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", name, err)
	}
	return []byte(text.String()), nil
}
