package doctable

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRows(t *testing.T) {
	const text = "# One\n\n| a | b |\n|---|---|\n| no | no |\n\n## Two\n\nWords.\n\n| a | b |\n|---|---|\n| `1` | |\n| ` x ` | y |\n\n| another | table |\n"
	if difference := cmp.Diff([][]string{{"`1`", ""}, {"` x `", "y"}}, rows(text, "Two")); difference != "" {
		t.Errorf("(-want +got):\n%s", difference)
	}
	for _, text := range []string{"", "# Two\n", "# Two\n| a |\n|---|\n", "# Two\n| a |\n"} {
		if got := rows(text, "Two"); len(got) != 0 {
			t.Errorf("%q has rows %q", text, got)
		}
	}
}

func TestCode(t *testing.T) {
	for cell, want := range map[string]string{"`a b`": "a b", "``": ""} {
		if got, ok := Code(cell); !ok || got != want {
			t.Errorf("%q is %q, %t", cell, got, ok)
		}
	}
	for _, cell := range []string{"", "`", "a", "`a` or `b`", "`a` b"} {
		if got, ok := Code(cell); ok {
			t.Errorf("%q is code %q", cell, got)
		}
	}
}
