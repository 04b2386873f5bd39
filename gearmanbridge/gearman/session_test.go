package gearman

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// describe writes packets as a line of their names and arguments.
func describe(packets []Packet) string {
	var words []string
	for _, packet := range packets {
		word := packet.Type.String()
		for i := range packet.Args {
			word += " " + packet.arg(i)
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

func TestSession(t *testing.T) {
	type step struct {
		event func(*session) []Packet
		want  string
	}
	setFree := func(s *session, free bool) {
		s.free = func() bool { return free }
		s.reserve = s.free
	}
	start := func(names ...string) func(*session) []Packet {
		return func(s *session) []Packet { return s.start("id", names) }
	}
	wide := func(names ...string) func(*session) []Packet {
		return func(s *session) []Packet { s.window = 2; return s.start("id", names) }
	}
	functions := func(names ...string) func(*session) []Packet {
		return func(s *session) []Packet { return s.setFunctions(names) }
	}
	assigned := func(name string) func(*session) []Packet {
		return func(s *session) []Packet { return s.assigned(name) }
	}
	filled := func(name string) func(*session) []Packet {
		return func(s *session) []Packet { setFree(s, false); return s.assigned(name) }
	}
	finished := func(name string) func(*session) []Packet {
		return func(s *session) []Packet { return s.finished(name) }
	}
	wake := func(s *session) []Packet { setFree(s, true); return s.wake() }
	full := func(s *session) []Packet { setFree(s, false); return nil }
	drain := func(s *session) []Packet { s.drain(); return nil }
	pong := func(handle string) func(*session) []Packet {
		return func(s *session) []Packet { return s.pong(handle) }
	}

	tests := map[string][]step{
		"idle worker sleeps and wakes": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{(*session).noJob, "PRE_SLEEP"},
			{(*session).noop, "GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ"},
			{(*session).noJob, "PRE_SLEEP"},
		},
		"two grabs while job follows job": {
			{wide("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ, GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ"},
			{(*session).noJob, ""},
			{(*session).noop, ""},
			{(*session).noJob, "PRE_SLEEP"},
			{(*session).noop, "GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ"},
		},
		"a job after NO_JOB, of two grabs": {
			{wide("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ, GRAB_JOB_UNIQ"},
			{(*session).noJob, ""},
			{assigned("f"), "GRAB_JOB_UNIQ"},
		},
		"a removed function goes when neither of two grabs is on its way": {
			{wide("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ, GRAB_JOB_UNIQ"},
			{finished("f"), ""},
			{finished("f"), ""},
			{functions(), ""},
			{(*session).noJob, ""},
			{(*session).noJob, "CANT_DO f"},
		},
		"two grabs that met an ERROR": {
			{wide("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ, GRAB_JOB_UNIQ"},
			{(*session).tick, "GET_STATUS worker-ping:1"},
			{pong("worker-ping:1"), "GRAB_JOB_UNIQ"},
			{(*session).noJob, "PRE_SLEEP"},
		},
		"a ping from before the last answer tells nothing": {
			{wide("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ, GRAB_JOB_UNIQ"},
			{(*session).tick, "GET_STATUS worker-ping:1"},
			{assigned("f"), "GRAB_JOB_UNIQ"},
			{pong("worker-ping:1"), ""},
		},
		"full worker is silent": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{filled("f"), ""},
			{(*session).noop, ""},
			{(*session).tick, "GET_STATUS worker-ping:1"},
			{wake, "GRAB_JOB_UNIQ"},
		},
		"full before the answer: no sleep either": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{full, ""},
			{(*session).noJob, ""},
			{wake, "GRAB_JOB_UNIQ"},
		},
		"full while asleep": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{(*session).noJob, "PRE_SLEEP"},
			{full, ""},
			{(*session).noop, ""},
			{wake, "GRAB_JOB_UNIQ"},
		},
		"finished job asks again": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{filled("f"), ""},
			{func(s *session) []Packet { setFree(s, true); return s.finished("f") }, "GRAB_JOB_UNIQ"},
		},
		"NOOP between grab and answer": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{(*session).noop, ""},
			{(*session).noJob, "PRE_SLEEP"},
		},
		"wake while grabbing or asleep says nothing": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{wake, ""},
			{(*session).noJob, "PRE_SLEEP"},
			{wake, ""},
		},
		"added function wakes a sleeper": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{(*session).noJob, "PRE_SLEEP"},
			{functions("f", "g"), "CAN_DO g, GRAB_JOB_UNIQ"},
		},
		"function added while grabbing": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{functions("f", "g"), "CAN_DO g"},
			{(*session).noJob, "PRE_SLEEP"},
		},
		"function added while full": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{filled("f"), ""},
			{functions("f", "g"), "CAN_DO g"},
			{wake, "GRAB_JOB_UNIQ"},
		},
		"no functions, no grab": {
			{start(), "SET_CLIENT_ID id"},
			{functions("f"), "CAN_DO f, GRAB_JOB_UNIQ"},
		},
		"removed function goes at once while asleep": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{(*session).noJob, "PRE_SLEEP"},
			{functions(), "CANT_DO f"},
			{functions(), ""},
			{(*session).noop, ""},
		},
		"removed function stays while its job may be on the way": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{functions(), ""},
			{assigned("f"), "GRAB_JOB_UNIQ"},
			{(*session).noJob, "PRE_SLEEP"},
			{finished("f"), "CANT_DO f"},
		},
		"removed function stays until the last of its jobs": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{assigned("f"), "GRAB_JOB_UNIQ"},
			{filled("f"), ""},
			{functions(), ""},
			{finished("f"), ""},
			{finished("f"), "CANT_DO f"},
		},
		"removed and wanted again: nothing to say": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{filled("f"), ""},
			{functions(), ""},
			{functions("f"), ""},
			{finished("f"), ""},
		},
		"sleeper grabs at the tick": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{(*session).noJob, "PRE_SLEEP"},
			{(*session).tick, "GRAB_JOB_UNIQ, GET_STATUS worker-ping:1"},
			{(*session).noJob, "PRE_SLEEP"},
			{pong("worker-ping:1"), ""},
		},
		"grab that met an ERROR is repeated": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{(*session).tick, "GET_STATUS worker-ping:1"},
			{pong("worker-ping:1"), "GRAB_JOB_UNIQ"},
		},
		"an old pong proves nothing about a new grab": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{(*session).noJob, "PRE_SLEEP"},
			{(*session).tick, "GRAB_JOB_UNIQ, GET_STATUS worker-ping:1"},
			{(*session).noJob, "PRE_SLEEP"},
			{(*session).noop, "GRAB_JOB_UNIQ"},
			{pong("worker-ping:1"), ""},
			{(*session).tick, "GET_STATUS worker-ping:2"},
			{(*session).tick, "GET_STATUS worker-ping:3"},
			{pong("worker-ping:x"), ""},
			{pong("worker-ping:2"), "GRAB_JOB_UNIQ"},
			{pong("worker-ping:3"), ""},
		},
		"draining worker keeps its jobs and grabs none": {
			{start("f"), "SET_CLIENT_ID id, CAN_DO f, GRAB_JOB_UNIQ"},
			{drain, ""},
			{assigned("f"), ""},
			{(*session).noop, ""},
			{(*session).tick, "GET_STATUS worker-ping:1"},
			{finished("f"), ""},
			{wake, ""},
			{functions("f", "g"), "CAN_DO g"},
		},
		"answers nobody asked for": {
			{start(), "SET_CLIENT_ID id"},
			{(*session).noJob, ""},
			{assigned("f"), ""},
			{finished("f"), ""},
			{finished("f"), ""},
		},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSession(func() bool { return true })
			for i, step := range steps {
				if diff := cmp.Diff(step.want, describe(step.event(s))); diff != "" {
					t.Fatalf("step %d (-want +got):\n%s", i+1, diff)
				}
			}
		})
	}
}

// TestSessionWithoutUseForASlot: who keeps slots must hear when a session that
// was refused one does not wait for it any more.
func TestSessionWithoutUseForASlot(t *testing.T) {
	for name, event := range map[string]func(*session){
		"drain":        (*session).drain,
		"no functions": func(s *session) { s.setFunctions(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			released := 0
			s := newSession(func() bool { return false })
			s.release = func() { released++ }
			s.start("", []string{"f"})
			if released > 0 {
				t.Fatal("released while it waits")
			}
			if event(s); released != 1 {
				t.Errorf("released %d times", released)
			}
		})
	}
}

func TestSessionRegistersInAnyOrder(t *testing.T) {
	seen := make(map[string]bool)
	for range 200 {
		s := newSession(func() bool { return false })
		seen[describe(s.start("", []string{"a", "b"}))] = true
	}
	want := map[string]bool{"CAN_DO a, CAN_DO b": true, "CAN_DO b, CAN_DO a": true}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
}
