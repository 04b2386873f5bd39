package gearmanbridge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/hack/doctable"
)

func TestReadParameters(t *testing.T) {
	tests := map[string]struct {
		argument string
		want     map[string]string
	}{
		"no parameter": {`{}`, map[string]string{}},
		"strings":      {`{"ZUUL_UUID": "0a", "EMPTY": "", "": "x"}`, map[string]string{"ZUUL_UUID": "0a", "EMPTY": "", "": "x"}},
		"numbers as they were written": {
			`{"a": 30, "b": -0, "c": 1.50, "d": 1e3, "e": 123456789012345678901234567890, "f": 0.1}`,
			map[string]string{"a": "30", "b": "-0", "c": "1.50", "d": "1e3", "e": "123456789012345678901234567890", "f": "0.1"},
		},
		"true, false, null": {`{"a": true, "b": false, "c": null}`, map[string]string{"a": "true", "b": "false", "c": ""}},
		"nested":            {`{"a": {"b": [1, 2.0, "x y"]}, "c": [ ], "d": { }}`, map[string]string{"a": `{"b":[1,2.0,"x y"]}`, "c": "[]", "d": "{}"}},
		"the last of two":   {`{"a": "1", "a": "2"}`, map[string]string{"a": "2"}},
		"blanks around":     {" \r\n\t{ \"a\" : 1 }\n", map[string]string{"a": "1"}},
		"shell and Kubernetes say nothing": {
			`{"a": "$(HOME) $$ a;rm -rf / \"'", "b": "x\ny\u0000z"}`,
			map[string]string{"a": `$(HOME) $$ a;rm -rf / "'`, "b": "x\ny\x00z"},
		},
		"escapes":           {`{"a": "\\ud800 \/\b\f\t", "b": "\u00e9\ud83d\ude00\uFFFD"}`, map[string]string{"a": `\ud800 /` + "\b\f\t", "b": "é😀\uFFFD"}},
		"UTF-8":             {`{"é": "日本"}`, map[string]string{"é": "日本"}},
		"as much as can be": {filled("x", maxParameterBytes-len(`{"a":""}`)), map[string]string{"a": strings.Repeat("x", maxParameterBytes-len(`{"a":""}`))}},
		"as many as can be": {numbered(1000), numberedParameters(1000)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := readParameters([]byte(test.argument))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("parameters (-want +got):\n%.2000s", diff)
			}
		})
	}
}

// filled is a request with a parameter of n bytes.
func filled(text string, n int) string { return `{"a": "` + strings.Repeat(text, n) + `"}` }

// numbered is a request with n parameters.
func numbered(n int) string {
	encoded, err := json.Marshal(numberedParameters(n))
	if err != nil {
		panic(err)
	}
	return string(encoded)
}

func numberedParameters(n int) map[string]string {
	parameters := map[string]string{}
	for i := range n {
		parameters[fmt.Sprintf("P%d", i)] = "x"
	}
	return parameters
}

func TestReadParametersRefuses(t *testing.T) {
	tests := map[string]struct{ argument, says string }{
		"empty":                     {"", "empty"},
		"blank":                     {" \n", "empty"},
		"text":                      {"hello", "not a JSON object"},
		"null":                      {"null", "null"},
		"array":                     {`["a"]`, "not a JSON object"},
		"string":                    {`"a"`, "not a JSON object"},
		"number":                    {"1", "not a JSON object"},
		"cut off":                   {`{"a": "b`, "not a JSON object"},
		"two objects":               {`{"a": 1} {"b": 2}`, "something after"},
		"brace after":               {`{"a": 1}}`, "something after"},
		"NUL after":                 {"{}\x00", "something after"},
		"NaN":                       {`{"a": NaN}`, "not a JSON object"},
		"truncated UTF-8":           {"{\"a\": \"\xe6\x97\"}", "not UTF-8"},
		"surrogate as UTF-8":        {"{\"a\": \"\xed\xa0\x80\"}", "not UTF-8"},
		"high half":                 {`{"PARAM": "\ud83d"}`, `\ud83d at byte 11 is half a character`},
		"low half":                  {`{"a": "x\uDE00"}`, "half a character"},
		"halves the wrong way":      {`{"a": "\ude00\ud83d"}`, "half a character"},
		"half before other escapes": {`{"a": "\ud83d\\ude00"}`, "half a character"},
		"half in a name":            {`{"\ud83d": "x"}`, "half a character"},
		"too big":                   {filled("x", maxParameterBytes-len(`{"a":""}`)+1), "1048577 bytes"},
		"too big with names":        {`{"` + strings.Repeat("x", maxParameterBytes-len(`{"":"y"}`)+1) + `": "y"}`, "1048577 bytes"},
		"too big as JSON":           {filled("<", maxParameterBytes/6+1), "bytes as JSON"},
		"too many":                  {numbered(1001), "1001 parameters; at most 1000"},
		"too deep":                  {`{"a": ` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`, "depth"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := readParameters([]byte(test.argument))
			if err == nil {
				t.Fatalf("parameters %.200v, an error was expected", got)
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %.300q does not say %q", err, test.says)
			}
		})
	}
}

// TestDocumentationOfParameters keeps docs/parameters.md and the code together.
func TestDocumentationOfParameters(t *testing.T) {
	for _, row := range doctable.Rows(t, "parameters.md", "From JSON to text") {
		value, isCode := doctable.Code(row[0])
		want, isText := doctable.Code(row[1])
		if !isCode || !isText {
			t.Errorf("row %q is not understood", row)
		}
		got, err := readParameters([]byte(`{"A": ` + value + `}`))
		if err != nil || got["A"] != want {
			t.Errorf("%s becomes %q (%v), not %q", value, got["A"], err, want)
		}
	}
	sizes := doctable.Rows(t, "parameters.md", "Sizes")
	sizes = sizes[len(sizes)-2:]
	if got := sizes[0][1] + "; " + sizes[1][1]; got != "1,048,576 bytes; 1,000" || maxParameterBytes != 1_048_576 || maxParameters != 1_000 {
		t.Errorf("docs/parameters.md says %q, the code %d and %d", got, maxParameterBytes, maxParameters)
	}
}

func FuzzReadParameters(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "null", `{"a": 1, "b": "\ud83d\ude00", "c": [null], "d": 1e999}`, `{"a": "\ud83d"}`, `{"\udc00": ""}`, "{\"a\": \"\xff\"}", `{"a": "\\\u005c"} x`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, argument []byte) {
		parameters, err := readParameters(argument)
		if err != nil {
			if !utf8.ValidString(err.Error()) {
				t.Errorf("error %q cannot be stored", err)
			}
			return
		}
		decoder := json.NewDecoder(bytes.NewReader(argument))
		decoder.UseNumber()
		var values map[string]any
		if err := decoder.Decode(&values); err != nil {
			t.Fatalf("took what is not JSON: %v", err)
		}
		if len(values) != len(parameters) {
			t.Errorf("%d parameters of %d", len(parameters), len(values))
		}
		if stored, err := json.Marshal(parameters); err != nil || len(stored) > maxParameterBytes {
			t.Errorf("the parameters have %d bytes as JSON (%v)", len(stored), err)
		}
		for name, text := range parameters {
			if !utf8.ValidString(name) || !utf8.ValidString(text) {
				t.Errorf("parameter %q: %q cannot be stored", name, text)
			}
			if value, isString := values[name].(string); isString && value != text {
				t.Errorf("parameter %q: %q, sent as %q", name, text, value)
			}
		}
	})
}
