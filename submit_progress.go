package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// progress shows a build while it runs: what happens line by line and, on a
// terminal, how far it is in one line more that is redrawn.
type progress struct {
	out      io.Writer // io.Discard to show nothing
	terminal *os.File  // nil if out is none
	before   zuulclient.State
	drawn    bool
}

func newProgress(out io.Writer, quiet bool) *progress {
	if quiet {
		return &progress{out: io.Discard}
	}
	p := &progress{out: out}
	if file, isFile := out.(*os.File); isFile && term.IsTerminal(int(file.Fd())) {
		p.terminal = file
	}
	return p
}

// interval is the time between redraws.
func (p *progress) interval() time.Duration {
	if p.terminal == nil {
		return time.Hour
	}
	return 250 * time.Millisecond
}

// say shows a line that stays. What cannot be shown is not worth an error.
func (p *progress) say(format string, args ...any) {
	p.clear()
	_, _ = fmt.Fprintln(p.out, printable(fmt.Sprintf(format, args...)))
}

// show shows what is new in the state, and how far the build is.
func (p *progress) show(state zuulclient.State, now time.Time) {
	for _, line := range news(p.before, state) {
		p.say("%s", line)
	}
	p.before = state
	if p.terminal == nil || state.Ended() {
		return
	}
	width, _, err := term.GetSize(int(p.terminal.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	_, _ = fmt.Fprint(p.out, "\r\x1b[K"+progressLine(state, now, width-1))
	p.drawn = true
}

// clear takes the redrawn line away.
func (p *progress) clear() {
	if p.drawn {
		_, _ = fmt.Fprint(p.out, "\r\x1b[K")
		p.drawn = false
	}
}

// news are lines about what differs in the later of two states.
func news(before, after zuulclient.State) []string {
	var lines []string
	if before.Number == nil && after.Number != nil {
		lines = append(lines, fmt.Sprintf("started as number %v, manager %s", after.Number, orNone(after.Manager)))
	}
	if after.URL != "" && after.URL != before.URL {
		lines = append(lines, "url "+after.URL)
	}
	if after.Estimated > 0 && after.Estimated != before.Estimated {
		lines = append(lines, "estimated to take "+rounded(after.Estimated))
	}
	for _, violation := range after.Violations[len(before.Violations):] {
		lines = append(lines, fmt.Sprintf("the worker breaks the protocol (%s): %s", violation.Rule, violation.Text))
	}
	return lines
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// progressLine is how far a build is, in at most width columns of ASCII.
func progressLine(state zuulclient.State, now time.Time, width int) string {
	phase, elapsed := "Queued", now.Sub(state.Submitted)
	if !state.Started.IsZero() {
		phase, elapsed = "Running", runningFor(state, now)
	}
	if state.Canceled {
		phase = "Stopping"
	}
	line := fmt.Sprintf("%-8s  %s", phase, rounded(elapsed))
	if !state.Started.IsZero() && state.Estimated > 0 {
		line = fmt.Sprintf("%-8s  %s  %s of about %s", phase, bar(elapsed, state.Estimated), rounded(elapsed), rounded(state.Estimated))
	}
	return line[:min(len(line), width)]
}

// runningFor is how long a build has been running. One that a worker found
// again may say that it runs for longer than it is known here.
func runningFor(state zuulclient.State, now time.Time) time.Duration {
	known := now.Sub(state.Started)
	for _, packet := range slices.Backward(state.Packets) {
		if packet.Type == gearman.PacketWorkStatus {
			return max(known, state.Elapsed+now.Sub(packet.Received))
		}
	}
	return known
}

// bar shows a share of the whole. Nothing but the end is 100 %.
func bar(elapsed, estimated time.Duration) string {
	const length = 24
	percent := max(0, min(99, int(100*elapsed/max(estimated, 1))))
	filled := length * percent / 100
	return fmt.Sprintf("[%s%s] %2d %%", strings.Repeat("#", filled), strings.Repeat("-", length-filled), percent)
}

// resultLine is the end of a build in one line.
func resultLine(state zuulclient.State) string {
	result := state.Result
	switch state.Outcome {
	case zuulclient.Canceled:
		result = "CANCELED"
		if state.Result != "" {
			result += " (" + state.Result + ")"
		}
	case zuulclient.Retry:
		result = "NO RESULT (Zuul would retry)"
	case zuulclient.Lost:
		result = "NO RESULT (LOST)"
	case zuulclient.Hang:
		result = "NO END (Zuul would wait for ever)"
	case zuulclient.Decided, zuulclient.Pending:
	}
	words := []string{result, state.Function}
	if state.Number != nil {
		words = append(words, fmt.Sprintf("number %v", state.Number))
	}
	if !state.Started.IsZero() {
		words = append(words, "in "+rounded(state.Completed.Sub(state.Started)))
	}
	if state.URL != "" {
		words = append(words, state.URL)
	}
	return printable(strings.Join(words, "  "))
}

// rounded shows a duration in seconds, or in milliseconds if it is none.
func rounded(duration time.Duration) string {
	if duration < time.Second {
		return duration.Round(time.Millisecond).String()
	}
	return duration.Round(time.Second).String()
}

// printable replaces what would let a worker's text act on the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, text)
}
