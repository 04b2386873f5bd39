//go:build linux

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseNodeLabels(t *testing.T) {
	got, err := parseNodeLabels([]string{"node-1=zuulbuild.dev/node=precise", "node-1=disk=a=b", "node-2=gpu="})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]string{"node-1": {"zuulbuild.dev/node": "precise", "disk": "a=b"}, "node-2": {"gpu": ""}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("labels differ (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"node-1", "node-1=disk", "=disk=fast", "node-1==fast"} {
		if _, err := parseNodeLabels([]string{bad}); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}
