package zuulclient

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

func data(text string) gearman.Event {
	return gearman.Event{Type: gearman.PacketWorkData, Data: []byte(text)}
}

func status(numerator, denominator int64) gearman.Event {
	return gearman.Event{Type: gearman.PacketWorkStatus, Numerator: numerator, Denominator: denominator}
}

func complete(text string) gearman.Event {
	return gearman.Event{Type: gearman.PacketWorkComplete, Data: []byte(text)}
}

func fail() gearman.Event { return gearman.Event{Type: gearman.PacketWorkFail} }

func warning(text string) gearman.Event {
	return gearman.Event{Type: gearman.PacketWorkWarning, Data: []byte(text)}
}

func exception(text string) gearman.Event {
	return gearman.Event{Type: gearman.PacketWorkException, Data: []byte(text)}
}

// seen is what the cases compare of a State.
type seen struct {
	Outcome      Outcome
	Result       string
	Number       any
	Manager, URL string
	Starts       int
	Broken       []Rule
}

func seenOf(s State) seen {
	var broken []Rule
	for _, violation := range s.Violations {
		broken = append(broken, violation.Rule)
	}
	return seen{s.Outcome, s.Result, s.Number, s.Manager, s.URL, s.Starts, broken}
}

const (
	started   = `{"name":"j","number":7,"manager":"m","master":"m","url":"http://u/","full_url":"http://u/"}`
	succeeded = `{"number":7,"manager":"m","master":"m","url":"http://u/","full_url":"http://u/","result":"SUCCESS"}`
)

// good is what is seen of a build that started as it should.
func good(outcome Outcome, result string, broken ...Rule) seen {
	return seen{outcome, result, json.Number("7"), "m", "http://u/", 1, broken}
}

// scripts are workers' packets and what Zuul makes of them.
var scripts = []struct {
	name    string
	dialect Dialect
	events  []gearman.Event
	want    seen
}{
	{"success", Zuul2, []gearman.Event{data(started), status(0, 5000), data(succeeded), complete(succeeded)}, good(Decided, "SUCCESS")},
	{"success of the branch", Branch, []gearman.Event{data(started), status(0, 5000), data(succeeded), complete(succeeded)}, good(Decided, "SUCCESS")},
	{"WORK_FAIL after a result", Zuul2, []gearman.Event{data(started), data(succeeded), fail()}, good(Decided, "SUCCESS")},
	{"empty WORK_COMPLETE keeps the data", Zuul2, []gearman.Event{data(started), data(succeeded), complete("")}, good(Decided, "SUCCESS")},
	{"empty WORK_DATA keeps the data", Zuul2, []gearman.Event{data(started), data(succeeded), data(""), fail()}, good(Decided, "SUCCESS")},
	{"only the newest data counts", Zuul2, []gearman.Event{data(started), data(succeeded), complete("{}")}, good(Retry, "", RuleForgottenResult)},
	{"WORK_FAIL without data", Zuul2, []gearman.Event{fail()}, seen{Outcome: Retry}},
	{"WORK_FAIL without a result", Zuul2, []gearman.Event{data(started), fail()}, good(Retry, "")},
	{"WORK_FAIL without a result, branch", Branch, []gearman.Event{data(started), fail()}, good(Lost, "")},
	{"null result", Zuul2, []gearman.Event{data(started), complete(`{"result":null}`)}, good(Retry, "")},
	{"empty result", Zuul2, []gearman.Event{data(started), complete(`{"result":""}`)}, good(Hang, "", RuleResult)},
	{"false result", Zuul2, []gearman.Event{data(started), complete(`{"result":false}`)}, good(Hang, "false", RuleResult)},
	{"result 0", Zuul2, []gearman.Event{data(started), complete(`{"result":0.0}`)}, good(Hang, "0.0", RuleResult)},
	{"result that is no string", Zuul2, []gearman.Event{data(started), complete(`{"result":[1]}`)}, good(Decided, "[1]", RuleResult)},
	{"result with a quote", Zuul2, []gearman.Event{data(started), complete(`{"result":"A\" --x"}`)}, good(Decided, `A" --x`, RuleResult)},
	{"result in the first packet", Zuul2, []gearman.Event{
		data(`{"number":7,"manager":"m","url":"http://u/","result":"SUCCESS"}`), fail()}, good(Decided, "SUCCESS", RuleEarlyResult)},
	{"final packet is no JSON", Zuul2, []gearman.Event{data(started), complete("done")}, good(Hang, "", RuleJSON)},
	{"final packet is an array", Zuul2, []gearman.Event{data(started), complete("[]")}, good(Hang, "", RuleJSON)},
	{"final packet has two values", Zuul2, []gearman.Event{data(started), complete("{} {}")}, good(Hang, "", RuleJSON)},
	{"final packet is no UTF-8", Zuul2, []gearman.Event{data(started), complete("{\"result\":\"\xff\"}")}, good(Hang, "", RuleJSON)},
	{"bad data is healed by the next", Zuul2, []gearman.Event{data("nonsense"), data(started), fail()}, good(Retry, "", RuleJSON)},
	{"WORK_STATUS with bad data", Zuul2, []gearman.Event{data(started), data("nonsense"), status(1, 2), fail()}, good(Hang, "", RuleJSON, RuleJSON)},
	{"WORK_STATUS first", Zuul2, []gearman.Event{status(0, 100), data(started), complete(succeeded)},
		seen{Decided, "SUCCESS", json.Number("7"), "m", "http://u/", 2, []Rule{RuleStart}}},
	{"number and manager change", Zuul2, []gearman.Event{data(started), data(`{"number":8,"manager":"n"}`), complete(succeeded)},
		good(Decided, "SUCCESS", RuleNumber, RuleManager)},
	{"no number", Zuul2, []gearman.Event{data(`{"manager":"m"}`), data(`{"manager":"n"}`), complete(`{"result":"FAILURE"}`)},
		seen{Decided, "FAILURE", nil, "n", "", 2, []Rule{RuleStart, RuleStart}}},
	{"number 0", Zuul2, []gearman.Event{data(`{"number":0,"manager":"m"}`), data(`{"number":1,"manager":"m"}`), fail()},
		seen{Retry, "", json.Number("0"), "m", "", 1, []Rule{RuleNumber, RuleNumber}}},
	{"number 0 of the branch is none", Branch, []gearman.Event{data(`{"number":0,"master":"m"}`), data(`{"number":1,"master":"n"}`), fail()},
		seen{Lost, "", json.Number("1"), "n", "", 2, []Rule{RuleNumber}}},
	{"no manager", Zuul2, []gearman.Event{data(`{"number":"a"}`), data(`{"number":"a","manager":"m"}`), fail()},
		seen{Retry, "", "a", "", "", 1, []Rule{RuleManager, RuleManager}}},
	{"the other dialect's spelling", Branch, []gearman.Event{data(`{"number":7,"manager":"m","url":"http://u/"}`), fail()},
		seen{Lost, "", json.Number("7"), "", "", 1, []Rule{RuleManager}}},
	{"late URL", Zuul2, []gearman.Event{data(started), data(`{"url":"http://log/","result":"FAILURE"}`), complete("")},
		seen{Decided, "FAILURE", json.Number("7"), "m", "http://log/", 1, nil}},
	{"late URL is nothing to the branch", Branch, []gearman.Event{data(started), data(`{"full_url":"http://log/","result":"FAILURE"}`), complete("")},
		good(Decided, "FAILURE")},
	{"URL in WORK_COMPLETE only", Zuul2, []gearman.Event{data(started), complete(`{"url":"http://log/","result":"FAILURE"}`)},
		good(Decided, "FAILURE", RuleUnread)},
	{"worker in WORK_COMPLETE only", Zuul2, []gearman.Event{data(started), complete(`{"worker_name":"w","result":"FAILURE"}`)},
		good(Decided, "FAILURE", RuleUnread)},
	{"URL with a quote", Zuul2, []gearman.Event{data(`{"number":7,"manager":"m","url":"http://u/\""}`), fail()},
		seen{Retry, "", json.Number("7"), "m", `http://u/"`, 1, []Rule{RuleURL}}},
	{"not ASCII", Zuul2, []gearman.Event{data(`{"number":7,"manager":"m","url":"http://u/","worker_name":"é"}`), fail()}, good(Retry, "", RuleASCII)},
	{"wrong types of worker_*", Zuul2, []gearman.Event{
		data(`{"number":7,"manager":"m","url":"http://u/","worker_name":1,"worker_ips":"::","worker_extra":[]}`), fail()},
		good(Retry, "", RuleWorker, RuleWorker, RuleWorker)},
	{"null node_labels and node_name", Zuul2, []gearman.Event{data(started), complete(`{"result":"A","node_labels":null,"node_name":null}`)},
		good(Decided, "A", RuleNode, RuleNode)},
	{"node label for statsd", Zuul2, []gearman.Event{data(started), complete(`{"result":"A","node_labels":["a:b"]}`)}, good(Decided, "A", RuleNode)},
}

// wire are scripts that the worker library cannot play.
var wire = []struct {
	name    string
	dialect Dialect
	events  []gearman.Event
	want    seen
}{
	{"WORK_WARNING hides the result", Zuul2, []gearman.Event{data(started), data(succeeded), warning("careful"), fail()},
		good(Hang, "", RuleWarning, RuleJSON)},
	{"WORK_EXCEPTION", Zuul2, []gearman.Event{data(started), exception("no")}, good(Retry, "", RuleException)},
	{"WORK_EXCEPTION after a result", Zuul2, []gearman.Event{data(started), data(succeeded), exception("no")}, good(Decided, "SUCCESS", RuleException)},
	{"WORK_EXCEPTION, branch", Branch, []gearman.Event{data(started), exception("no")}, good(Hang, "", RuleException)},
	{"packets after the end", Zuul2, []gearman.Event{data(started), complete(succeeded), data(`{"result":"B","url":"x"}`), fail()}, good(Decided, "SUCCESS")},
}

func TestObserve(t *testing.T) {
	for _, test := range append(scripts, wire...) {
		t.Run(test.name, func(t *testing.T) {
			o := newObserver(test.dialect, State{})
			for _, event := range test.events {
				o.observe(Packet{Event: event})
			}
			if diff := cmp.Diff(test.want, seenOf(o.state)); diff != "" {
				t.Errorf("(-want +got):\n%s\n%v", diff, o.state.Violations)
			}
		})
	}
}

func TestObserveDetails(t *testing.T) {
	o := newObserver(Zuul2, State{})
	begin, end := time.Unix(1, 0), time.Unix(9, 0)
	o.observe(Packet{data(`{"number":7,"manager":"m","worker_name":"w","worker_ips":["::1"],"worker_extra":{"pod":"p"}}`), begin})
	o.observe(Packet{status(1500, 60000), begin})
	o.observe(Packet{data(`{"worker_version":"1"}`), begin})
	o.observe(Packet{complete(`{"result":"SUCCESS","node_labels":["a","b"],"node_name":"n"}`), end})
	got := o.state
	got.Packets = nil
	want := State{
		Started: begin, Completed: end, Number: json.Number("7"), Manager: "m", Starts: 1,
		Elapsed: 1500 * time.Millisecond, Estimated: time.Minute,
		Worker:     Worker{Name: "w", Version: "1", IPs: []string{"::1"}, Extra: map[string]any{"pod": "p"}},
		NodeLabels: []string{"a", "b"}, NodeName: "n",
		Outcome: Decided, Result: "SUCCESS",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCanceledResultIsIgnored(t *testing.T) {
	for _, test := range []struct {
		name  string
		final gearman.Event
		want  Outcome
	}{
		{"result", complete(succeeded), Canceled},
		{"no result", fail(), Canceled},
		{"empty result", complete(`{"result":""}`), Canceled},
		{"no JSON", complete("nonsense"), Hang},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newObserver(Zuul2, State{Canceled: true})
			o.observe(Packet{Event: data(started)})
			o.observe(Packet{Event: test.final})
			if o.state.Outcome != test.want {
				t.Errorf("got %q, want %q", o.state.Outcome, test.want)
			}
		})
	}
}

func TestUnknownEstimate(t *testing.T) {
	o := newObserver(Zuul2, State{})
	o.observe(Packet{Event: data(started)})
	o.observe(Packet{Event: status(0, -1)})
	if o.state.Estimated != 0 {
		t.Errorf("got %v, want 0", o.state.Estimated)
	}
}

func TestPacketAsJSON(t *testing.T) {
	for _, test := range []struct {
		event gearman.Event
		want  string
	}{
		{data(`{"a":1}`), `{"received":"1970-01-01T00:00:01Z","type":"WORK_DATA","data":{"a":1}}`},
		{complete("no"), `{"received":"1970-01-01T00:00:01Z","type":"WORK_COMPLETE","data":"no"}`},
		{status(0, 9), `{"received":"1970-01-01T00:00:01Z","type":"WORK_STATUS","numerator":0,"denominator":9}`},
		{fail(), `{"received":"1970-01-01T00:00:01Z","type":"WORK_FAIL"}`},
	} {
		got, err := json.Marshal(Packet{test.event, time.Unix(1, 0).UTC()})
		if err != nil || string(got) != test.want {
			t.Errorf("got %s, %v, want %s", got, err, test.want)
		}
	}
}

func TestASCIIJSON(t *testing.T) {
	got, err := asciiJSON(map[string]any{"é": "<&\U0001F600\u007f\n"})
	if want := "{\"\\u00e9\":\"<&\\ud83d\\ude00\u007f\\n\"}"; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}
