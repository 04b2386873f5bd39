package gearmanbridge

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// WorkerInfo is what Zuul shows of the worker (protocol section 1.4).
type WorkerInfo struct {
	Hostname string
	FQDN     string
	IPs      []string
	Version  string
}

// workData is the JSON object of WORK_DATA. Zuul takes the newest one as the whole truth, so each is complete. Both spellings of the two names that
// changed before Zuul 2.0.0 are sent.
type workData struct {
	Name           string      `json:"name"`
	Number         int64       `json:"number"`
	Manager        string      `json:"manager"`
	Master         string      `json:"master"`
	URL            string      `json:"url"`
	FullURL        string      `json:"full_url"`
	Result         string      `json:"result,omitempty"` // "" would hang the change in Zuul: absent means none
	Worker         string      `json:"worker"`
	WorkerName     string      `json:"worker_name"`
	WorkerHostname string      `json:"worker_hostname"`
	WorkerFQDN     string      `json:"worker_fqdn"`
	WorkerIPs      []string    `json:"worker_ips"`
	WorkerProgram  string      `json:"worker_program"`
	WorkerVersion  string      `json:"worker_version"`
	WorkerExtra    workerExtra `json:"worker_extra"`
	NodeLabels     []string    `json:"node_labels"`
	NodeName       string      `json:"node_name"`
}

// workerExtra says where the build is and why, for whoever looks into Zuul's status.json.
type workerExtra struct {
	Namespace string `json:"namespace,omitempty"`
	Build     string `json:"build,omitempty"`
	Pod       string `json:"pod,omitempty"`
	Phase     string `json:"phase,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Message   string `json:"message,omitempty"`
}

// describe is what Zuul is told of a build. The result is in it only once the build is complete: a server that loses us evaluates the newest
// WORK_DATA (protocol section 1.2).
func (b *Bridge) describe(build *v1alpha1.ZuulBuild) workData {
	data := b.worker()
	data.Name, data.Number = build.Spec.Job, build.Spec.Number
	data.URL = b.BuildURL(build)
	data.FullURL = data.URL
	data.NodeName = build.Status.NodeName
	data.NodeLabels = nodeLabels(build.Spec.Node)
	data.WorkerExtra = workerExtra{
		Namespace: build.Namespace, Build: build.Name, Pod: build.Status.PodName,
		Phase: string(build.Status.Phase), Reason: build.Status.Reason, Message: build.Status.Message,
	}
	if build.Complete() {
		data.Result = build.Status.Result
	}
	return data
}

// worker fills in what is the same for every build.
func (b *Bridge) worker() workData {
	ips := b.Worker.IPs
	if ips == nil {
		ips = []string{}
	}
	return workData{
		Manager: b.Manager, Master: b.Manager, Worker: b.Manager, WorkerName: b.Manager,
		WorkerHostname: b.Worker.Hostname, WorkerFQDN: b.Worker.FQDN, WorkerIPs: ips,
		WorkerProgram: "zuulbuild", WorkerVersion: b.Worker.Version, NodeLabels: []string{},
	}
}

// nodeLabels become parts of statsd keys in Zuul, in which ':' and '|' have a meaning of their own.
func nodeLabels(class string) []string {
	if class == "" {
		return []string{}
	}
	return []string{strings.NewReplacer(":", "_", "|", "_").Replace(class)}
}

// encode is the JSON text in ASCII: some Zuul installations cannot take anything else.
func (d workData) encode() []byte {
	text, err := json.Marshal(d)
	if err != nil {
		panic(fmt.Sprintf("a WORK_DATA of strings and numbers is always JSON: %v", err))
	}
	return toASCII(text)
}

// toASCII escapes what is not ASCII in a JSON text. It can only stand in strings, where an escape means the same.
func toASCII(text []byte) []byte {
	ascii := make([]byte, 0, len(text))
	for _, r := range string(text) {
		switch {
		case r < 0x7f:
			ascii = append(ascii, byte(r))
		case r <= 0xffff:
			ascii = fmt.Appendf(ascii, `\u%04x`, r)
		default:
			high, low := utf16.EncodeRune(r)
			ascii = fmt.Appendf(ascii, `\u%04x\u%04x`, high, low)
		}
	}
	return ascii
}

const (
	// unknownEstimate is what Jenkins sent as the denominator of WORK_STATUS where it had no estimate (protocol section 1.5).
	unknownEstimate = -1
	// maxEstimate is the highest denominator: gearmand closes the connection at one of 12 digits, 10 are safe (protocol section 1.1).
	maxEstimate = 9_999_999_999
)

// estimated is how long a build of a job is expected to run in all, in milliseconds: the denominator of WORK_STATUS. job may be nil.
func estimated(job *v1alpha1.ZuulJob, build *v1alpha1.ZuulBuild) int64 {
	if job == nil {
		return unknownEstimate
	}
	estimate := job.Status.Estimate(build.Spec.Parameters["ZUUL_BRANCH"]).Milliseconds()
	if estimate <= 0 {
		return unknownEstimate
	}
	return min(estimate, maxEstimate)
}

// sendStatus sends how long a build has run, and how long it is expected to. Nothing is expected of a job that the cache does not know.
func (b *Bridge) sendStatus(ctx context.Context, a *assignment, build *v1alpha1.ZuulBuild) error {
	job := &v1alpha1.ZuulJob{}
	if err := b.Client.Get(ctx, a.target.key, job); err != nil {
		job = nil
	}
	return a.job.Status(elapsed(build, time.Now()), estimated(job, build))
}

// elapsed is how long the main container of a build has run, or ran, in milliseconds: the numerator of WORK_STATUS.
func elapsed(build *v1alpha1.ZuulBuild, now time.Time) int64 {
	if build.Status.StartTime == nil {
		return 0
	}
	if build.Status.CompletionTime != nil {
		now = build.Status.CompletionTime.Time
	}
	return min(max(now.Sub(build.Status.StartTime.Time).Milliseconds(), 0), maxEstimate) // whatever the node's clock says
}
