package zuulclient

import (
	"fmt"
	"reflect"
	"slices"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// observer follows the packets of one build as Zuul does.
type observer struct {
	dialect Dialect
	state   State
	// newest is the newest data, which alone counts: of WORK_DATA,
	// WORK_WARNING or WORK_COMPLETE, if not empty. nil if it is no object.
	newest map[string]any
	// resultSeen is true once a data packet had a result.
	resultSeen bool
}

func newObserver(dialect Dialect, state State) *observer {
	return &observer{dialect: dialect, state: state, newest: map[string]any{}}
}

// observe takes the next packet. Nothing comes after an end.
func (o *observer) observe(packet Packet) {
	if o.state.Ended() {
		return
	}
	o.state.Packets = append(o.state.Packets, packet)
	switch packet.Type {
	case gearman.PacketWorkData:
		fresh := o.take(packet.Data)
		o.update(packet.Received, fresh)
	case gearman.PacketWorkWarning:
		o.violate(RuleWarning, "WORK_WARNING: Zuul takes its text for data")
		o.take(packet.Data)
	case gearman.PacketWorkStatus:
		if o.newest == nil {
			o.violate(RuleJSON, "WORK_STATUS while the newest data is not usable")
			return
		}
		o.update(packet.Received, false)
		o.estimate(packet.Numerator, packet.Denominator)
	case gearman.PacketWorkComplete:
		if o.take(packet.Data) {
			o.checkUnread()
		}
		o.complete(packet.Received)
	case gearman.PacketWorkFail:
		o.complete(packet.Received)
	case gearman.PacketWorkException:
		o.violate(RuleException, fmt.Sprintf("WORK_EXCEPTION %.200q", packet.Data))
		if o.dialect == Branch { // which had no handler for it
			o.state.Completed, o.state.Outcome = packet.Received, Hang
			return
		}
		o.complete(packet.Received)
	default: // not about the build
	}
}

func (o *observer) violate(rule Rule, text string) {
	o.state.Violations = append(o.state.Violations, Violation{rule, len(o.state.Packets) - 1, text})
}

// take makes data the newest and reports whether it did so with an object.
func (o *observer) take(data []byte) bool {
	if len(data) == 0 {
		return false
	}
	object, err := parseObject(data)
	if err != nil {
		o.newest = nil
		o.violate(RuleJSON, fmt.Sprintf("data %.100q: %v", data, err))
		return false
	}
	o.newest = object
	if slices.ContainsFunc(data, func(b byte) bool { return b >= 0x80 }) {
		o.violate(RuleASCII, "data with bytes outside ASCII")
	}
	for _, violation := range check(o.dialect, object) {
		o.violate(violation.Rule, violation.Text)
	}
	if o.dialect.started(o.state.Number) {
		o.checkFrozen(RuleNumber, "number", o.state.Number)
		o.checkFrozen(RuleManager, o.dialect.managerKey(), o.state.Manager)
	}
	return true
}

// checkFrozen complains of a value that is given again and differs.
func (o *observer) checkFrozen(rule Rule, key string, first any) {
	value := o.newest[key]
	if value != nil && !reflect.DeepEqual(value, first) {
		o.violate(rule, fmt.Sprintf("%s changed from %v to %v: Zuul keeps the first", key, first, value))
	}
}

// update is Zuul's onWorkStatus. fresh is true if the newest data came with
// this very packet.
func (o *observer) update(now time.Time, fresh bool) {
	if o.newest == nil {
		return
	}
	s := &o.state
	started := o.dialect.started(s.Number)
	if url, given := o.newest[o.dialect.urlKey()]; given && (o.dialect == Zuul2 || !started) {
		s.URL, _ = url.(string)
	}
	if o.dialect == Zuul2 {
		s.Worker.update(o.newest)
	}
	if fresh && started {
		o.resultSeen = o.resultSeen || o.newest["result"] != nil
	}
	if started {
		return
	}
	s.Starts++
	if s.Started.IsZero() {
		s.Started = now
	}
	s.Number = o.newest["number"]
	s.Manager, _ = o.newest[o.dialect.managerKey()].(string)
	o.checkStart()
}

func (o *observer) checkStart() {
	switch {
	case o.state.Number == nil:
		o.violate(RuleStart, "start without a number: Zuul cannot stop the build and hears of a start again")
	case !truthy(o.state.Number):
		o.violate(RuleNumber, fmt.Sprintf("number %v counts as none", o.state.Number))
	case o.state.Manager == "":
		o.violate(RuleManager, fmt.Sprintf("no %s: Zuul submits stop:None, which nobody serves", o.dialect.managerKey()))
	}
	if o.newest["result"] != nil {
		o.resultSeen = true
		o.violate(RuleEarlyResult, fmt.Sprintf("result %v with the start: Zuul reports it if the build gets lost", o.newest["result"]))
	}
}

// estimate reads WORK_STATUS as Zuul 2.0.0 to 2.1.0 did: the denominator is
// the expected duration in milliseconds, below 1 if unknown.
func (o *observer) estimate(numerator, denominator int64) {
	o.state.Elapsed = time.Duration(max(numerator, 0)) * time.Millisecond
	if denominator > 0 {
		o.state.Estimated = time.Duration(denominator) * time.Millisecond
	}
}

// checkUnread complains of what only WORK_COMPLETE told.
func (o *observer) checkUnread() {
	if url, given := o.newest[o.dialect.urlKey()]; given && o.dialect == Zuul2 && url != o.state.URL {
		o.violate(RuleUnread, fmt.Sprintf("url %v comes with WORK_COMPLETE only: Zuul keeps %q", url, o.state.URL))
	}
	worker := o.state.Worker
	worker.update(o.newest)
	if o.dialect == Zuul2 && !reflect.DeepEqual(worker, o.state.Worker) {
		o.violate(RuleUnread, "worker_* come with WORK_COMPLETE only: Zuul does not read them")
	}
}

// complete is Zuul's onBuildCompleted: the newest data decides, whether the
// build completed, failed or was lost with its server.
func (o *observer) complete(now time.Time) {
	s := &o.state
	s.Completed = now
	if o.newest == nil {
		s.Outcome = Hang
		return
	}
	o.node()
	switch result := o.newest["result"].(type) {
	case nil:
		s.Outcome = Retry
		if o.dialect == Branch {
			s.Outcome = Lost
		}
		if o.resultSeen {
			o.violate(RuleForgottenResult, "an earlier packet had a result, the last data has none: for Zuul there is none")
		}
	case string:
		s.Outcome, s.Result = Decided, result
	default:
		s.Outcome, s.Result = Decided, string(mustJSON(result))
	}
	if s.Outcome == Decided && !truthy(o.newest["result"]) {
		s.Outcome = Hang
	}
	if s.Canceled {
		s.Outcome = Canceled
	}
}

// node reads what Zuul reads since 2.5.0 of the last data.
func (o *observer) node() {
	if o.dialect == Branch {
		return
	}
	labels, problem := nodeLabels(o.newest)
	if problem != "" {
		o.violate(RuleNode, problem)
	}
	o.state.NodeLabels = labels
	name, given := o.newest["node_name"]
	text, isString := name.(string)
	if given && !isString {
		o.violate(RuleNode, fmt.Sprintf("node_name %v is no string", name))
	}
	o.state.NodeName = text
}
