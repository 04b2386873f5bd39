package recorded

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPage: docs/cases.md is what the recordings say.
func TestPage(t *testing.T) {
	cases, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	_, page := paths()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Page(cases), string(text)); diff != "" {
		t.Errorf("docs/cases.md is stale; `make record` writes it (-recordings +page):\n%s", diff)
	}
}
