package zuulclient

import (
	"encoding/json"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// Outcome is what the end of a build is to Zuul.
type Outcome string

const (
	// Pending builds have not ended.
	Pending Outcome = ""
	// Decided builds have a result that Zuul reports.
	Decided Outcome = "decided"
	// Retry is a build without a result: Zuul launches it again with a new
	// UUID, up to 2.5.1 at once and for ever.
	Retry Outcome = "retry"
	// Lost is a build without a result in the Branch dialect, which has no
	// retry.
	Lost Outcome = "lost"
	// Hang is an end that Zuul does not notice or cannot use: the change
	// waits for ever. The worker is at fault.
	Hang Outcome = "hang"
	// Canceled builds ended after Cancel; Zuul ignores their result.
	Canceled Outcome = "canceled"
)

// State is what Zuul knows of a build at a moment.
type State struct {
	UUID     string `json:"uuid"`
	Job      string `json:"job"`
	Node     string `json:"node,omitempty"`
	Function string `json:"function"` // build:JOB or build:JOB:NODE
	Handle   string `json:"handle,omitempty"`

	Submitted time.Time `json:"submitted,omitzero"`
	// Started is when Zuul was first told of the build by WORK_DATA or
	// WORK_STATUS; zero before.
	Started   time.Time `json:"started,omitzero"`
	Completed time.Time `json:"completed,omitzero"`

	// Number is any JSON value, a number as json.Number; nil until the worker
	// gave one. It and Manager keep their first value.
	Number  any    `json:"number"`
	Manager string `json:"manager,omitempty"`
	URL     string `json:"url,omitempty"`
	// Elapsed and Estimated are those of the last WORK_STATUS, 0 if unknown.
	Elapsed   time.Duration `json:"-"`
	Estimated time.Duration `json:"-"`

	Worker Worker `json:"worker"`
	// NodeLabels and NodeName are those of the last packet of an ended build.
	NodeLabels []string `json:"nodeLabels,omitempty"`
	NodeName   string   `json:"nodeName,omitempty"`

	Outcome Outcome `json:"outcome"`
	// Result is what the worker said, "" for none; JSON text if it is no
	// string. Only "SUCCESS" is success.
	Result string `json:"result"`
	// Canceled is true from the call of Cancel on.
	Canceled bool `json:"canceled"`
	// Starts counts how often Zuul was told that the build starts: once with
	// a good worker.
	Starts int `json:"starts"`

	Violations []Violation `json:"violations"`
	// Packets are all WORK_* packets in the order received.
	Packets []Packet `json:"packets"`
}

// Ended reports whether no more is to come.
func (s State) Ended() bool { return s.Outcome != Pending }

// Worker is what a build's worker says of itself (since Zuul 2.1.0).
type Worker struct {
	Name     string         `json:"name,omitempty"`
	Hostname string         `json:"hostname,omitempty"`
	FQDN     string         `json:"fqdn,omitempty"`
	Program  string         `json:"program,omitempty"`
	Version  string         `json:"version,omitempty"`
	IPs      []string       `json:"ips,omitempty"`
	Extra    map[string]any `json:"extra,omitempty"`
}

// Packet is a WORK_* packet of a build.
type Packet struct {
	gearman.Event
	Received time.Time
}

// MarshalJSON shows the data as JSON where it is JSON, else as a string.
func (p Packet) MarshalJSON() ([]byte, error) {
	shown := struct {
		Received    time.Time `json:"received"`
		Type        string    `json:"type"`
		Numerator   *int64    `json:"numerator,omitempty"`
		Denominator *int64    `json:"denominator,omitempty"`
		Data        any       `json:"data,omitempty"`
	}{Received: p.Received, Type: p.Type.String()}
	if p.Type == gearman.PacketWorkStatus {
		shown.Numerator, shown.Denominator = &p.Numerator, &p.Denominator
	}
	switch {
	case len(p.Data) == 0:
	case json.Valid(p.Data):
		shown.Data = json.RawMessage(p.Data)
	default:
		shown.Data = string(p.Data)
	}
	return json.Marshal(shown)
}

// Rule names a rule of the protocol that a worker can break.
type Rule string

const (
	// RuleJSON says: data is a JSON object. Zuul fails on the packet otherwise,
	// and a build whose last data is none never ends.
	RuleJSON Rule = "json"
	// RuleASCII says: the JSON is pure ASCII.
	RuleASCII Rule = "ascii"
	// RuleStart says: the first packet is WORK_DATA with a number.
	RuleStart Rule = "start"
	// RuleNumber says: the number is not 0 and stays.
	RuleNumber Rule = "number"
	// RuleManager says: a manager comes with the number and stays. Without it the
	// build cannot be stopped.
	RuleManager Rule = "manager"
	// RuleEarlyResult says: the first packet has no result. Zuul would report it if
	// the build got lost.
	RuleEarlyResult Rule = "early-result"
	// RuleResult says: a result is absent or matches [A-Z][A-Z0-9_]*. An empty one
	// lets the change wait for ever.
	RuleResult Rule = "result"
	// RuleForgottenResult says: the last data repeats the result that was given.
	RuleForgottenResult Rule = "forgotten-result"
	// RuleURL says: the URL is printable ASCII without blanks and quotes; Zuul puts
	// it unescaped into a command line of Gerrit.
	RuleURL Rule = "url"
	// RuleUnread says: URL and worker_* do not come with WORK_COMPLETE only, where
	// Zuul does not read them.
	RuleUnread Rule = "unread"
	// RuleWorker says: worker_* are strings, a list of strings and an object.
	RuleWorker Rule = "worker"
	// RuleNode says: node_labels of the last packet are strings without ":" and
	// "|", node_name is a string; neither is null.
	RuleNode Rule = "node"
	// RuleWarning says: no WORK_WARNING. Its text becomes the newest data.
	RuleWarning Rule = "warning"
	// RuleException says: no WORK_EXCEPTION. Old servers do not forward it.
	RuleException Rule = "exception"
)

// Violation is a rule broken by a packet.
type Violation struct {
	Rule Rule `json:"rule"`
	// Packet is the index in State.Packets.
	Packet int    `json:"packet"`
	Text   string `json:"text"`
}
