package zuulclient

import (
	"fmt"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// Dialect is how a Zuul spells the protocol.
type Dialect int

const (
	// Zuul2 is every release, 2.0.0 to 2.6.0: "url" may change with each
	// packet, "manager" stops builds by name and number, a build without a
	// result is retried.
	Zuul2 Dialect = iota
	// Branch is the development branch before them (May 2013): "full_url" and
	// "master" count in the first packet only, builds are stopped by UUID, a
	// build without a result is lost.
	Branch
)

// ParseDialect is the reverse of Dialect.String.
func ParseDialect(name string) (Dialect, error) {
	for _, dialect := range []Dialect{Zuul2, Branch} {
		if name == dialect.String() {
			return dialect, nil
		}
	}
	return 0, fmt.Errorf("unknown dialect %q: it is zuul2 or branch", name)
}

// String returns "zuul2" or "branch".
func (d Dialect) String() string {
	if d == Branch {
		return "branch"
	}
	return "zuul2"
}

// MarshalText returns what String does.
func (d Dialect) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Dialect) urlKey() string {
	if d == Branch {
		return "full_url"
	}
	return "url"
}

func (d Dialect) managerKey() string {
	if d == Branch {
		return "master"
	}
	return "manager"
}

// started reports whether Zuul takes a build with the number for started. The
// branch tested for truth, the releases for None.
func (d Dialect) started(number any) bool {
	if d == Branch {
		return truthy(number)
	}
	return number != nil
}

// stop returns the priority and the argument of a stop: job.
func (d Dialect) stop(state State) (gearman.Priority, []byte) {
	if d == Branch {
		return gearman.PriorityNormal, []byte(state.UUID)
	}
	return gearman.PriorityHigh, mustJSON(map[string]any{"name": state.Job, "number": state.Number})
}

// description returns the argument of a set_description: job.
func (d Dialect) description(state State, html string) []byte {
	if d == Branch {
		return mustJSON(map[string]any{"unique_id": state.UUID, "html_description": html})
	}
	return mustJSON(map[string]any{"name": state.Job, "number": state.Number, "html_description": html})
}
