// Package auditlog finds out from the audit log of an API server (audit.k8s.io/v1, a JSON object a line) who changed what, which Pods there were at each
// moment, and which rights were used. The policy must have every request logged, and the answers to changes of Pods and of the status of ZuulBuilds, as
// that of hack/localcluster has.
package auditlog

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Entry is a request that was to change something.
type Entry struct {
	Verb           string
	Stage          string
	StageTimestamp time.Time // of the end of the answer
	UserAgent      string
	User           struct{ Username string }
	// ObjectRef is what the request was about. Of one that was created, Name is what the answer says, if the request did not.
	ObjectRef struct{ Resource, Subresource, Namespace, Name string }
	// ResponseStatus is 200 of a client that was gone before it was answered, too, whether anything was changed or not.
	ResponseStatus struct{ Code int }
	ResponseObject json.RawMessage
}

// Done tells whether the API server answered that it was done.
func (e *Entry) Done() bool { return e.ResponseStatus.Code >= 200 && e.ResponseStatus.Code < 300 }

// What was done, as in "patch zuulbuilds/status".
func (e *Entry) What() string {
	return strings.TrimSuffix(e.Verb+" "+e.ObjectRef.Resource+"/"+e.ObjectRef.Subresource, "/")
}

// Read returns the changes in the log, in its order, which is nearly that of the answers. A last line that is still being written is left out.
func Read(path string) ([]Entry, error) {
	log, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	entries, err := parse(log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return entries, nil
}

func parse(log []byte) ([]Entry, error) {
	return decode(log, func(entry *Entry) bool {
		changes := slices.Contains([]string{"create", "update", "patch", "delete", "deletecollection"}, entry.Verb)
		return changes && entry.Stage == "ResponseComplete"
	})
}

// decode reads the lines of a log that are to be kept. A last line that is still being written is left out.
func decode[T any](log []byte, keep func(*T) bool) ([]T, error) {
	var kept []T
	number := 0
	for line := range bytes.Lines(log) {
		number++
		if !bytes.HasSuffix(line, []byte("\n")) {
			break
		}
		var decoded T
		if err := json.Unmarshal(line, &decoded); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if keep(&decoded) {
			kept = append(kept, decoded)
		}
	}
	return kept, nil
}

// Write is a change that was made.
type Write struct {
	What string // as of Entry.What
	// Phase and Reason are those of the build afterwards, if its status was changed.
	Phase  v1alpha1.BuildPhase
	Reason string
}

func (w Write) String() string {
	if w.Phase == "" {
		return w.What
	}
	return strings.TrimSuffix(fmt.Sprintf("%s: %s, %s", w.What, w.Phase, w.Reason), ", ")
}

// Writes are what the program changed, of which this is the beginning of the user agent ("zuulbuild/"): what it did to the objects of each name. What
// it was not answered is left out. Events count for the object they are about.
func Writes(entries []Entry, program string) map[string][]Write {
	writes := map[string][]Write{}
	for i := range entries {
		entry := &entries[i]
		if !strings.HasPrefix(entry.UserAgent, program) || !entry.Done() {
			continue
		}
		name := entry.ObjectRef.Name
		if entry.ObjectRef.Resource == "events" {
			name, _, _ = strings.Cut(name, ".")
		}
		writes[name] = append(writes[name], entry.Write())
	}
	return writes
}

// Write is the entry as a change.
func (e *Entry) Write() Write {
	write := Write{What: e.What()}
	build := v1alpha1.ZuulBuild{}
	if e.ObjectRef.Resource == "zuulbuilds" && e.ObjectRef.Subresource == "status" && json.Unmarshal(e.ResponseObject, &build) == nil {
		write.Phase, write.Reason = build.Status.Phase, build.Status.Reason
	}
	return write
}

// SaysWait tells whether it says of a build that it waits, which costs one write more where that takes long.
func (w Write) SaysWait() bool {
	return w.Phase == v1alpha1.PhaseQueued || w.Phase == v1alpha1.PhaseStarting
}

// Pod is the Pod of a build.
type Pod struct {
	UID             types.UID
	Namespace, Name string // the build's, too
	Job, Class      string // Gearman names; Class is "" for none
	// Unanswered: whoever had it created was gone before the answer, so that the log tells only about when that was.
	Unanswered bool
}

// Peak is the most Pods there were at once.
type Peak struct {
	Count    int
	Revision int64    // of the API server's storage, from which on there were as many for the first time
	Pods     []string // their names, sorted
}

// History is what Replay finds.
type History struct {
	Pods  []*Pod          // in the order in which the log tells of them
	Peaks map[string]Peak // by group
}

// version is a Pod from a revision on.
type version struct {
	revision int64
	pod      *Pod
	counts   bool // it exists and has not ended
}

// Replay goes through all versions of all Pods of builds, in the order in which they were stored, and finds the most that existed and had not ended at
// once, for each of the groups that Pods are in. That order is exact, unlike that of the answers: it is the order of the resource versions, which are
// revisions of etcd. A Pod that is being deleted counts until it is gone or has ended. One whose creation was not answered, since the client was
// killed meanwhile, counts from the newest revision that the log told of when the request failed.
func Replay(entries []Entry, groups func(*Pod) []string) (*History, error) {
	history := &History{Peaks: map[string]Peak{}}
	known := map[types.UID]*Pod{}
	created := map[*Pod]bool{}
	failed := map[types.NamespacedName]int64{} // the first creation of each that was not answered with a Pod
	var versions []version
	newest := int64(0)
	for i := range entries {
		entry := &entries[i]
		if entry.ObjectRef.Resource != "pods" || entry.ObjectRef.Subresource != "" && entry.ObjectRef.Subresource != "status" {
			continue
		}
		object := podOf(entry.ResponseObject)
		if object == nil {
			key := types.NamespacedName{Namespace: entry.ObjectRef.Namespace, Name: entry.ObjectRef.Name}
			if _, before := failed[key]; !before && entry.Verb == "create" {
				failed[key] = newest
			}
			continue
		}
		if object.Labels[v1alpha1.LabelBuild] == "" {
			continue
		}
		if entry.Verb == "delete" && object.ResourceVersion == "" {
			continue // another deletion came first, and its answer has the last version
		}
		revision, err := strconv.ParseInt(object.ResourceVersion, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("resource version of Pod %s: %w", object.Name, err)
		}
		newest = max(newest, revision)
		pod := known[object.UID]
		if pod == nil {
			pod = &Pod{
				UID: object.UID, Namespace: object.Namespace, Name: object.Name,
				Job: object.Annotations[v1alpha1.AnnotationJob], Class: object.Annotations[v1alpha1.AnnotationNode],
			}
			known[object.UID] = pod
			history.Pods = append(history.Pods, pod)
		}
		created[pod] = created[pod] || entry.Verb == "create"
		versions = append(versions, version{revision, pod, counts(entry.Verb, object)})
	}
	for _, pod := range history.Pods {
		if at, tried := failed[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}]; tried && !created[pod] {
			pod.Unanswered = true
			versions = append(versions, version{at, pod, true})
		}
	}
	slices.SortStableFunc(versions, func(a, b version) int { return cmp.Compare(a.revision, b.revision) })
	history.count(versions, groups)
	return history, nil
}

// count goes through versions in their order.
func (h *History) count(versions []version, groups func(*Pod) []string) {
	counting := map[string]map[*Pod]bool{}
	for _, v := range versions {
		for _, group := range groups(v.pod) {
			if counting[group] == nil {
				counting[group] = map[*Pod]bool{}
			}
			pods := counting[group]
			if !v.counts {
				delete(pods, v.pod)
				continue
			}
			pods[v.pod] = true
			if len(pods) > h.Peaks[group].Count {
				h.Peaks[group] = Peak{Count: len(pods), Revision: v.revision, Pods: names(pods)}
			}
		}
	}
}

func names(pods map[*Pod]bool) []string {
	var names []string
	for pod := range pods {
		names = append(names, pod.Name)
	}
	slices.Sort(names)
	return names
}

// podOf is the Pod in an answer; nil if there is none, as in one that tells of an error.
func podOf(answer json.RawMessage) *corev1.Pod {
	kind := struct{ Kind string }{}
	pod := &corev1.Pod{}
	if json.Unmarshal(answer, &kind) != nil || kind.Kind != "Pod" || json.Unmarshal(answer, pod) != nil {
		return nil
	}
	return pod
}

// counts tells whether the Pod exists, after it was answered like this, and has not ended. The answer to the deletion that takes it away is the last
// version of it, without time to end.
func counts(verb string, pod *corev1.Pod) bool {
	gone := verb == "delete" && (pod.DeletionGracePeriodSeconds == nil || *pod.DeletionGracePeriodSeconds == 0) && len(pod.Finalizers) == 0
	return !gone && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}
