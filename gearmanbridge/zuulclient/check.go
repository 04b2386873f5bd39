package zuulclient

import (
	"fmt"
	"regexp"
	"strings"
)

var resultPattern = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

// check finds the values in data that Zuul cannot take wherever they come.
func check(dialect Dialect, data map[string]any) []Violation {
	var found []Violation
	violate := func(rule Rule, format string, args ...any) {
		found = append(found, Violation{Rule: rule, Text: fmt.Sprintf(format, args...)})
	}
	if result := data["result"]; result != nil {
		text, isString := result.(string)
		switch {
		case !truthy(result):
			violate(RuleResult, "result %#v is neither absent nor true: the change waits for ever", result)
		case !isString:
			violate(RuleResult, "result %v is no string: it breaks the status page", result)
		case !resultPattern.MatchString(text):
			violate(RuleResult, "result %q does not match %s", text, resultPattern)
		}
	}
	key := dialect.urlKey()
	if url, given := data[key]; given {
		text, isString := url.(string)
		switch {
		case !isString:
			violate(RuleURL, "%s %v is no string", key, url)
		case strings.ContainsFunc(text, unsafeInURL):
			violate(RuleURL, "%s %q has characters that must be percent-encoded", key, text)
		}
	}
	if dialect == Zuul2 {
		for _, problem := range new(Worker).update(data) {
			violate(RuleWorker, "%s", problem)
		}
	}
	return found
}

func unsafeInURL(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune("\"'`\\", r)
}

// update takes the worker_* of data and returns what is wrong with them. What
// data does not have stays.
func (w *Worker) update(data map[string]any) (problems []string) {
	texts := map[string]*string{
		"worker_name": &w.Name, "worker_hostname": &w.Hostname, "worker_fqdn": &w.FQDN,
		"worker_program": &w.Program, "worker_version": &w.Version,
	}
	for _, key := range []string{"worker_name", "worker_hostname", "worker_fqdn", "worker_program", "worker_version"} {
		if value, given := data[key]; given {
			text, isString := value.(string)
			if !isString {
				problems = append(problems, fmt.Sprintf("%s %v is no string", key, value))
			}
			*texts[key] = text
		}
	}
	if value, given := data["worker_ips"]; given {
		list, isList := stringsOf(value)
		if !isList {
			problems = append(problems, fmt.Sprintf("worker_ips %v is no list of strings", value))
		}
		w.IPs = list
	}
	if value, given := data["worker_extra"]; given {
		object, isObject := value.(map[string]any)
		if !isObject {
			problems = append(problems, fmt.Sprintf("worker_extra %v is no object", value))
		}
		w.Extra = object
	}
	return problems
}

// nodeLabels returns the node_labels of data, and what is wrong with them or
// "".
func nodeLabels(data map[string]any) (labels []string, problem string) {
	value, given := data["node_labels"]
	if !given {
		return nil, ""
	}
	labels, isList := stringsOf(value)
	if !isList {
		return nil, fmt.Sprintf("node_labels %v is no list of strings", value)
	}
	for _, label := range labels {
		if strings.ContainsAny(label, ":|") {
			return labels, fmt.Sprintf("node label %q has a character of statsd", label)
		}
	}
	return labels, ""
}

// stringsOf returns value as a list of strings if it is one.
func stringsOf(value any) ([]string, bool) {
	list, isList := value.([]any)
	texts := make([]string, 0, len(list))
	for _, element := range list {
		text, isString := element.(string)
		if !isString {
			return nil, false
		}
		texts = append(texts, text)
	}
	return texts, isList
}
