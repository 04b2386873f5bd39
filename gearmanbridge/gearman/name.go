package gearman

import "fmt"

// MaxFunctionName is the longest function name, in bytes, that libgearman
// clients can submit to.
const MaxFunctionName = 512

// MaxClientID is the longest client id in bytes.
const MaxClientID = 127

// ValidFunctionName returns nil if a server can be told name without harm,
// else an error that says why not.
//
// Only the bytes 0x21 to 0x7E are allowed, 1 to MaxFunctionName of them: a
// blank makes Zuul see another name, and a byte outside ASCII breaks the
// `status` command of geard, for everybody and until it restarts.
func ValidFunctionName(name string) error {
	return validName("function name", name, MaxFunctionName)
}

func validName(what, name string, longest int) error {
	if name == "" {
		return fmt.Errorf("gearman: empty %s", what)
	}
	if len(name) > longest {
		return fmt.Errorf("gearman: %s %.40q… has %d bytes, at most %d are allowed", what, name, len(name), longest)
	}
	for i := range len(name) {
		if name[i] < 0x21 || name[i] > 0x7E {
			return fmt.Errorf("gearman: %s %q has byte 0x%02X at position %d: only printable ASCII without blanks is allowed",
				what, name, name[i], i)
		}
	}
	return nil
}
