package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

func TestProgressLine(t *testing.T) {
	now := time.Unix(1000, 0)
	ago := func(duration time.Duration) time.Time { return now.Add(-duration) }
	status := func(received time.Time) []zuulclient.Packet {
		return []zuulclient.Packet{{Event: gearman.Event{Type: gearman.PacketWorkStatus}, Received: received}}
	}
	for name, test := range map[string]struct {
		state zuulclient.State
		width int
		want  string
	}{
		"queued":  {zuulclient.State{Submitted: ago(12 * time.Second)}, 80, "Queued    12s"},
		"no time": {zuulclient.State{Submitted: ago(300 * time.Millisecond)}, 80, "Queued    300ms"},
		"running": {zuulclient.State{Submitted: ago(time.Hour), Started: ago(63 * time.Second)}, 80, "Running   1m3s"},
		"half": {zuulclient.State{Started: ago(time.Minute), Estimated: 2 * time.Minute}, 80,
			"Running   [############------------] 50 %  1m0s of about 2m0s"},
		"over": {zuulclient.State{Started: ago(time.Hour), Estimated: time.Minute}, 80,
			"Running   [#######################-] 99 %  1h0m0s of about 1m0s"},
		"found again": {zuulclient.State{Started: ago(time.Minute), Elapsed: 9 * time.Minute, Packets: status(ago(time.Minute))}, 80,
			"Running   10m0s"},
		"stopping": {zuulclient.State{Submitted: ago(time.Second), Canceled: true}, 80, "Stopping  1s"},
		"narrow":   {zuulclient.State{Started: ago(time.Minute), Estimated: 2 * time.Minute}, 20, "Running   [#########"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := progressLine(test.state, now, test.width); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestNews(t *testing.T) {
	started := zuulclient.State{Number: json.Number("7"), Manager: "m", URL: "http://u/"}
	ending := started
	ending.URL = "http://log/"
	ending.Estimated = time.Minute
	ending.Violations = []zuulclient.Violation{{Rule: zuulclient.RuleResult, Text: "odd"}}
	for name, test := range map[string]struct {
		before, after zuulclient.State
		want          []string
	}{
		"nothing": {started, started, nil},
		"start":   {zuulclient.State{}, started, []string{"started as number 7, manager m", "url http://u/"}},
		"more": {started, ending, []string{"url http://log/", "estimated to take 1m0s",
			"the worker breaks the protocol (result): odd"}},
		"no manager": {zuulclient.State{}, zuulclient.State{Number: "a"}, []string{"started as number a, manager none"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, news(test.before, test.after)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestResultLine(t *testing.T) {
	for want, state := range map[string]zuulclient.State{
		"A\uFFFD[2J  build:j":                  {Outcome: zuulclient.Decided, Result: "A\x1b[2J", Function: "build:j"},
		"CANCELED  build:j":                    {Outcome: zuulclient.Canceled, Function: "build:j"},
		"NO RESULT (LOST)  build:j":            {Outcome: zuulclient.Lost, Function: "build:j"},
		"SUCCESS  build:j  number a  http://u": {Outcome: zuulclient.Decided, Result: "SUCCESS", Function: "build:j", Number: "a", URL: "http://u"},
	} {
		if got := resultLine(state); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
