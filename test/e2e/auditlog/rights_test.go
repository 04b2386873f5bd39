package auditlog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
)

// TestReadUse has the lines of a log as the API server writes them, but for what nobody reads here.
func TestReadUse(t *testing.T) {
	const begin = `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","requestReceivedTimestamp":"2026-11-23T10:00:00.123456Z",` +
		`"user":{"username":"system:serviceaccount:a:operator","groups":["system:authenticated"]},`
	const allowed = `"annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":"RBAC: allowed by …"}}` + "\n"
	const forbidden = `"annotations":{"authorization.k8s.io/decision":"forbid","authorization.k8s.io/reason":""}}` + "\n"
	const (
		watch = begin + `"stage":"ResponseStarted","verb":"watch","requestURI":"/api/v1/pods?watch=true","objectRef":{"resource":"pods","apiVersion":"v1"},` +
			`"responseStatus":{"metadata":{},"code":200},` + allowed
		status = begin + `"stage":"ResponseComplete","verb":"patch","requestURI":"/apis/zuulbuild.dev/v1alpha1/namespaces/b/zuuljobs/j/status",` +
			`"objectRef":{"resource":"zuuljobs","namespace":"b","name":"j","apiGroup":"zuulbuild.dev","apiVersion":"v1alpha1","subresource":"status"},` + allowed
		quota = begin + `"stage":"ResponseComplete","verb":"create","requestURI":"/api/v1/namespaces/b/pods","objectRef":{"resource":"pods","namespace":"b"},` +
			`"responseStatus":{"metadata":{},"status":"Failure","message":"exceeded quota","reason":"Forbidden","code":403},` + allowed
		discovery = begin + `"stage":"ResponseComplete","verb":"get","requestURI":"/apis","responseStatus":{"metadata":{},"code":200},` + allowed
		secrets   = begin + `"stage":"ResponseComplete","verb":"list","requestURI":"/api/v1/secrets","objectRef":{"resource":"secrets"},` +
			`"responseStatus":{"metadata":{},"status":"Failure","reason":"Forbidden","code":403},` + forbidden
		metrics = begin + `"stage":"ResponseComplete","verb":"get","requestURI":"/metrics","responseStatus":{"metadata":{},"code":403},` + forbidden
	)
	earlier := strings.Replace(secrets, "10:00:00", "09:59:59", 1)
	another := strings.Replace(secrets, "a:operator", "b:operator", 1)
	impersonated := strings.Replace(secrets, `"username":"system:serviceaccount:a:operator"`, `"username":"admin"},"impersonatedUser":{"username":"system:serviceaccount:a:operator"`, 1)

	for name, test := range map[string]struct {
		log  string
		want Use
	}{
		"nothing":                    {"", Use{Used: map[string]bool{}}},
		"a watch, begun and ended":   {watch + strings.Replace(watch, "Started", "Complete", 1), Use{Used: map[string]bool{"watch pods": true}}},
		"a subresource":              {status, Use{Used: map[string]bool{"patch zuulbuild.dev/zuuljobs/status": true}}},
		"refused by a quota":         {quota, Use{Used: map[string]bool{"create pods": true}}},
		"of no resource":             {discovery, Use{Used: map[string]bool{}}},
		"no right":                   {secrets + secrets + metrics, Use{Used: map[string]bool{}, Refused: []string{"list /api/v1/secrets", "get /metrics"}}},
		"before, others, and half":   {earlier + another + impersonated + secrets[:len(secrets)-1], Use{Used: map[string]bool{}}},
		"before an authorizer's say": {strings.Replace(watch, "decision", "undecided", 1), Use{Used: map[string]bool{}}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "audit.log")
			if err := os.WriteFile(file, []byte(test.log), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := ReadUse(file, "system:serviceaccount:a:operator", time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRights(t *testing.T) {
	got := Rights([]rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods", "pods/log"}, Verbs: []string{"get"}},
		{APIGroups: []string{"zuulbuild.dev"}, Resources: []string{"zuulbuilds/status"}, Verbs: []string{"patch", "update"}},
	})
	want := []string{"get pods", "get pods/log", "patch zuulbuild.dev/zuulbuilds/status", "update zuulbuild.dev/zuulbuilds/status"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
