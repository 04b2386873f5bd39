package controllers

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestScriptCommand(t *testing.T) {
	cases := []struct {
		name, script string
		want         []string
	}{
		{"no interpreter", "make\nmake test\n", []string{"/bin/sh", "-e", "-c", "make\nmake test\n"}},
		{"a comment is no interpreter", "# !sh\ntrue", []string{"/bin/sh", "-e", "-c", "# !sh\ntrue"}},
		{"not on the first line", "\n#!/bin/bash\n", []string{"/bin/sh", "-e", "-c", "\n#!/bin/bash\n"}},
		{"bash", "#!/bin/bash\ntrue", []string{"/bin/bash", "-c", "#!/bin/bash\ntrue"}},
		{"arguments", "#!/bin/bash -eu -o pipefail\ntrue", []string{"/bin/bash", "-eu", "-o", "pipefail", "-c", "#!/bin/bash -eu -o pipefail\ntrue"}},
		{"space before", "#! /bin/sh -x\ntrue", []string{"/bin/sh", "-x", "-c", "#! /bin/sh -x\ntrue"}},
		{"carriage return", "#!/bin/bash\r\ntrue", []string{"/bin/bash", "-c", "#!/bin/bash\r\ntrue"}},
		{"one line only", "#!/bin/sh", []string{"/bin/sh", "-c", "#!/bin/sh"}},
		{"env", "#!/usr/bin/env python3\nprint(1)", []string{"/usr/bin/env", "python3", "-c", "#!/usr/bin/env python3\nprint(1)"}},
		{"env -S", "#!/usr/bin/env -S perl -w\n1", []string{"/usr/bin/env", "-S", "perl", "-w", "-e", "#!/usr/bin/env -S perl -w\n1"}},
		{"env with a variable", "#!/usr/bin/env A=b node\n1", []string{"/usr/bin/env", "A=b", "node", "-e", "#!/usr/bin/env A=b node\n1"}},
		{"an interpreter of the image's own", "#!/opt/ruby/bin/ruby\n1", []string{"/opt/ruby/bin/ruby", "-e", "#!/opt/ruby/bin/ruby\n1"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := scriptCommand(c.script)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestScriptIsNotExpanded: Kubernetes expands $(NAME) in commands; a script is full of them.
func TestScriptIsNotExpanded(t *testing.T) {
	for _, script := range []string{"echo $(HOME) $$ $((1+1)) $(date)", "#!/bin/sh -$\necho $(HOME)$$"} {
		command, err := scriptCommand(script)
		if err != nil {
			t.Fatal(err)
		}
		if got := expand(command[len(command)-1], map[string]string{"HOME": "expanded"}); got != script {
			t.Errorf("the container runs %q, not %q", got, script)
		}
	}
}

func TestScriptRefused(t *testing.T) {
	cases := []struct{ script, says string }{
		{"#!", "names no interpreter"},
		{"#! \t\ntrue", "names no interpreter"},
		{"#!/usr/bin/php\n", `interpreter "php"`},
		{"#!/usr/bin/env\n", `interpreter "env"`},
		{"#!/usr/bin/env -S\n", `interpreter "-S"`},
		{"#!/" + strings.Repeat("x", 500), "…"},
	}
	for _, c := range cases {
		command, err := scriptCommand(c.script)
		if err == nil {
			t.Errorf("script %.20q is accepted: %q", c.script, command)
		} else if !strings.Contains(err.Error(), c.says) {
			t.Errorf("error %q does not say %q", err, c.says)
		}
	}
}
