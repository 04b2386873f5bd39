package controllers

import (
	"fmt"
	"path"
	"strings"
)

// scriptFlags says how an interpreter takes a program as an argument.
var scriptFlags = map[string]string{
	"sh": "-c", "bash": "-c", "dash": "-c", "ash": "-c", "ksh": "-c", "zsh": "-c",
	"python": "-c", "python2": "-c", "python3": "-c",
	"perl": "-e", "ruby": "-e", "node": "-e",
}

// scriptCommand is the command that runs a job's script: `/bin/sh -e`, or what its first line names (#!), as a kernel would have run it from a
// file. The error says which interpreter is not known.
func scriptCommand(script string) ([]string, error) {
	if !strings.HasPrefix(script, "#!") {
		return []string{"/bin/sh", "-e", "-c", literal(script)}, nil
	}
	line, _, _ := strings.Cut(script[2:], "\n")
	words := strings.Fields(line)
	if len(words) == 0 {
		return nil, fmt.Errorf("the script begins with #! but names no interpreter")
	}
	interpreter := path.Base(words[0])
	if interpreter == "env" && len(words) > 1 {
		interpreter = path.Base(words[len(words)-1])
		for _, word := range words[1:] {
			if !strings.HasPrefix(word, "-") && !strings.Contains(word, "=") {
				interpreter = path.Base(word)
				break
			}
		}
	}
	flag, known := scriptFlags[interpreter]
	if !known {
		return nil, fmt.Errorf("the script begins with #! and interpreter %q, which is not one of sh, bash, dash, ash, ksh, zsh, python, python2, "+
			"python3, perl, ruby, node; use a template with a command of your own", shorten(interpreter))
	}
	command := make([]string, 0, len(words)+2)
	for _, word := range words {
		command = append(command, literal(word))
	}
	return append(command, flag, literal(script)), nil
}
