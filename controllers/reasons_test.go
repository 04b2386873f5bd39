package controllers

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestReasonsAreDocumented: whoever reads a reason must find it in docs/reasons.md, with the result that comes with it.
func TestReasonsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	rows := regexp.MustCompile(`(?m)^\| ([A-Z]\w+) \|`).FindAllSubmatch(page, -1)
	for _, row := range rows {
		documented[string(row[1])] = true
	}
	_, running, _ := strings.Cut(string(page), "A build that has not ended")
	for _, word := range regexp.MustCompile(`[A-Z]\w+`).FindAllString(running, -1) {
		documented[word] = true
	}
	reasons := constants(t, "reasons.go", "Reason")
	if len(reasons) < 20 {
		t.Fatalf("only %d reasons found in reasons.go", len(reasons))
	}
	for _, reason := range reasons {
		if !documented[reason] {
			t.Errorf("reason %s is not in docs/reasons.md", reason)
		}
	}
	for _, row := range rows {
		if reason := string(row[1]); !slices.Contains(reasons, reason) {
			t.Errorf("docs/reasons.md has %s, which no build gives", reason)
		}
	}
	for _, result := range constants(t, "reasons.go", "Result") {
		if !strings.Contains(string(page), "| "+result+" |") {
			t.Errorf("result %s is not in docs/reasons.md", result)
		}
	}
}

// constants are the values of the string constants of a file whose names begin so.
func constants(t *testing.T, file, prefix string) (values []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(parsed, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for i, name := range spec.Names {
			if literal, ok := spec.Values[i].(*ast.BasicLit); ok && strings.HasPrefix(name.Name, prefix) {
				value, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				values = append(values, value)
			}
		}
		return true
	})
	return values
}
