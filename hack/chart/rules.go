package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// sayable are the rules of the definitions, which are in CEL, and how a schema says each, because Helm knows no CEL.
var sayable = map[string]func(schema map[string]any){
	"has(self.template) ? !has(self.image) && !has(self.script) && !has(self.resources) : has(self.image) && has(self.script)": func(schema map[string]any) {
		schema["if"] = map[string]any{"required": []any{"template"}}
		schema["then"] = map[string]any{"properties": map[string]any{"image": false, "script": false, "resources": false}}
		schema["else"] = map[string]any{"required": []any{"image", "script"}}
	},
	"!has(self.template) || has(self.template.spec)": func(schema map[string]any) {
		within(schema, "template")["required"] = []any{"spec"}
	},
}

// names is a rule that tells which keys a map may have.
var names = regexp.MustCompile(`^self\.all\((\w+), (\w+) in \[((?:'\w+'(?:, )?)+)\]\)$`)

// sayRules has a schema say the rules in it, those of its path and below. One that is new, or was changed, has to be taught above.
func sayRules(schema map[string]any, path string) error {
	rules, _ := schema["x-kubernetes-validations"].([]any)
	for _, rule := range rules {
		text := rule.(map[string]any)["rule"].(string)
		if keys := names.FindStringSubmatch(text); keys != nil && keys[1] == keys[2] {
			allowed := map[string]any{}
			for name := range strings.SplitSeq(keys[3], ", ") {
				allowed[strings.Trim(name, "'")] = maps.Clone(schema["additionalProperties"].(map[string]any))
			}
			schema["properties"], schema["additionalProperties"] = allowed, false
		} else if say := sayable[text]; say != nil {
			say(schema)
		} else {
			return fmt.Errorf("%s: rules.go knows no schema for the rule %s", path, text)
		}
	}
	children := map[string]any{}
	properties, _ := schema["properties"].(map[string]any)
	maps.Copy(children, properties)
	for _, key := range []string{"items", "additionalProperties"} {
		if child, ok := schema[key].(map[string]any); ok {
			children[key] = child
		}
	}
	for _, name := range slices.Sorted(maps.Keys(children)) {
		if err := sayRules(children[name].(map[string]any), path+"."+name); err != nil {
			return err
		}
	}
	return nil
}
