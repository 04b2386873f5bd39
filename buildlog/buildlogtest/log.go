// Package buildlogtest reads logs in tests: which lines are about a build, and whether those say so.
package buildlogtest

import (
	"encoding/json"
	"io"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"zuulbuild.dev/zuulbuild/buildlog"
)

// Log keeps the lines that are logged at any level.
type Log struct {
	mu    sync.Mutex
	also  io.Writer
	lines []Line
}

// Line is one of them.
type Line struct {
	Text   string
	Values map[string]any
}

// Message is what the line says.
func (l Line) Message() string { return l.text(slog.MessageKey) }

// Text is a value that is one; empty where there is none.
func (l Line) text(key string) string {
	text, _ := l.Values[key].(string)
	return text
}

// New is a Log that passes its lines on.
func New(also io.Writer) *Log { return &Log{also: also} }

// Handler writes to it as the operator does to its own log.
func (l *Log) Handler() slog.Handler {
	return slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})
}

// Write takes one line.
func (l *Log) Write(text []byte) (int, error) {
	line := Line{Text: string(text)}
	if err := json.Unmarshal(text, &line.Values); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	return l.also.Write(text)
}

func (l *Log) all() []Line {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// Of are the lines about the build of a uuid, those below the level left out.
func (l *Log) Of(uuid string, level slog.Level) []Line {
	return slices.DeleteFunc(l.all(), func(line Line) bool {
		var of slog.Level
		return of.UnmarshalText([]byte(line.text(slog.LevelKey))) != nil || of < level || line.text(buildlog.KeyUUID) != uuid
	})
}

// uuids are as Zuul makes them.
var uuids = regexp.MustCompile(`\b[0-9a-f]{32}\b`)

// Check fails the test for each line about a build that does not say so, or says it twice. About a build is a line in which a uuid is, whatever the
// builds are, and one of a round of a controller that is named.
func (l *Log) Check(t testing.TB, controllers ...string) {
	t.Helper()
	for _, line := range l.all() {
		mentioned := uuids.FindAllString(line.Text, -1)
		_, round := line.Values["reconcileID"]
		round = round && slices.Contains(controllers, line.text("controller"))
		told := false
		for _, key := range []string{buildlog.KeyUUID, buildlog.KeyBuild} {
			_, has := line.Values[key]
			told = told || has
		}
		if len(mentioned) == 0 && !round && !told {
			continue
		}
		for _, key := range []string{buildlog.KeyUUID, buildlog.KeyJob, buildlog.KeyBuild} {
			if count := strings.Count(line.Text, `"`+key+`":`); count != 1 {
				t.Errorf("%q is there %d times: %s", key, count, line.Text)
			}
		}
		if line.Message() == "Command for an unknown build" { // which has no more than the command says
			continue
		}
		if line.text(buildlog.KeyJob) == "" || len(mentioned) > 0 && !slices.Contains(mentioned, line.text(buildlog.KeyUUID)) {
			t.Errorf("the line does not say which build it is about: %s", line.Text)
		}
	}
}
