package gearmanbridge

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
	"pgregory.net/rapid"
)

func TestBuildName(t *testing.T) {
	const zuul = "0123456789abcdef0123456789abcdef"
	hashed := buildName("../../x")
	tests := map[string]struct {
		unique string
		kept   bool
	}{
		"Zuul's":             {zuul, true},
		"with hyphens":       {"a-b-c", true},
		"one character":      {"x", true},
		"52 characters":      {strings.Repeat("a", 52), true},
		"53 characters":      {strings.Repeat("a", 53), false},
		"300 characters":     {strings.Repeat("a", 300), false},
		"path":               {"../../x", false},
		"slash":              {"other/name", false},
		"upper case":         {strings.ToUpper(zuul), false},
		"dots":               {"a.b", false},
		"hyphen in front":    {"-a", false},
		"hyphen at the end":  {"a-", false},
		"empty":              {"", false},
		"line end":           {zuul + "\n", false},
		"NUL":                {"a\x00b", false},
		"not UTF-8":          {"\xff\xfe", false},
		"not ASCII":          {"bäu", false},
		"name of another":    {hashed, false},
		"like such a name":   {"unique-0123", true},
		"such a name, upper": {strings.ToUpper(hashed), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := buildName(test.unique)
			if (got == test.unique) != test.kept {
				t.Errorf("buildName(%q) = %q", test.unique, got)
			}
			checkBuildName(t, got)
			if again := buildName(test.unique); again != got {
				t.Errorf("second time %q, first %q", again, got)
			}
		})
	}
}

func checkBuildName(t interface{ Errorf(string, ...any) }, name string) {
	if problems := validation.IsDNS1123Label(name); len(problems) > 0 || len(name) > 52 {
		t.Errorf("%q cannot name objects: %d bytes, %v", name, len(name), problems)
	}
}

// TestBuildNamesDiffer: two uniques never share a name, not even one that was made to look like another's name.
func TestBuildNamesDiffer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unique := rapid.OneOf(
			rapid.StringMatching(`[-a-zA-Z0-9./]{0,60}`),
			rapid.String(),
			rapid.Map(rapid.SliceOf(rapid.Byte()), func(bytes []byte) string { return string(bytes) }),
		)
		one := unique.Draw(t, "one")
		two := rapid.OneOf(unique, rapid.SampledFrom([]string{
			buildName(one), strings.ToLower(one), strings.ToValidUTF8(one, "\uFFFD"), one + "\x00", strings.TrimSpace(one), buildName(buildName(one)),
		})).Draw(t, "two")
		checkBuildName(t, buildName(one))
		if (one == two) != (buildName(one) == buildName(two)) {
			t.Fatalf("%q and %q are named %q and %q", one, two, buildName(one), buildName(two))
		}
	})
}
