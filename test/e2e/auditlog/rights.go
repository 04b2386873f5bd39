package auditlog

import (
	"fmt"
	"os"
	"path"
	"slices"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
)

// Use is what a user made of its rights.
type Use struct {
	// Used are the rights that a request needed and was given, as Rights writes them.
	Used map[string]bool
	// Refused are the requests that the user has no right to, each once, such as "list /api/v1/secrets". What is refused for another reason, such as a
	// quota or Pod Security, has code 403, too, and is not among them.
	Refused []string
}

// decision is what the log tells of the right to a request. One that takes its time, such as a watch, is there twice: when its answer begins and ends.
type decision struct {
	Verb, RequestURI string
	User             struct{ Username string }
	ObjectRef        *struct{ APIGroup, Resource, Subresource string } // nil: it is about no resource
	// RequestReceivedTimestamp is by the clock of the API server.
	RequestReceivedTimestamp time.Time
	Annotations              map[string]string
}

// decisionAnnotation is where the API server tells what its authorizers said, before anything else could refuse the request.
const decisionAnnotation = "authorization.k8s.io/decision"

// ReadUse returns what a user of this name asked since then. Requests made in its name by another, who impersonates it, are not its own.
func ReadUse(file, user string, since time.Time) (Use, error) {
	log, err := os.ReadFile(file)
	if err != nil {
		return Use{}, err
	}
	decisions, err := decode(log, func(d *decision) bool { return d.User.Username == user && !d.RequestReceivedTimestamp.Before(since) })
	if err != nil {
		return Use{}, fmt.Errorf("%s: %w", file, err)
	}
	use := Use{Used: map[string]bool{}}
	for i := range decisions {
		d := &decisions[i]
		switch d.Annotations[decisionAnnotation] {
		case "allow":
			if d.ObjectRef != nil {
				use.Used[right(d.Verb, d.ObjectRef.APIGroup, d.ObjectRef.Resource, d.ObjectRef.Subresource)] = true
			}
		case "forbid":
			refused := d.Verb + " " + d.RequestURI
			if !slices.Contains(use.Refused, refused) {
				use.Refused = append(use.Refused, refused)
			}
		}
	}
	return use, nil
}

// Rights are what rules give, each verb on each resource by itself, such as "create pods" and "patch zuulbuild.dev/zuulbuilds/status".
func Rights(rules []rbacv1.PolicyRule) []string {
	var rights []string
	for _, rule := range rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					rights = append(rights, right(verb, group, resource))
				}
			}
		}
	}
	return rights
}

func right(verb string, resource ...string) string { return verb + " " + path.Join(resource...) }
