package gearmanbridge

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadStop(t *testing.T) {
	byName := buildReference{job: "unit", number: 5}
	tests := map[string]struct {
		argument string
		want     buildReference
	}{
		"Zuul 2":              {`{"name": "unit", "number": 5}`, byName},
		"number as a string":  {`{"name": "unit", "number": "5"}`, byName},
		"more than asked for": {"\n{\"name\": \"unit\", \"number\": 5, \"html_description\": \"<b>\"} ", byName},
		"highest number":      {`{"name": "unit", "number": 9223372036854775807}`, buildReference{job: "unit", number: 9223372036854775807}},
		"the branch":          {"0123456789abcdef0123456789abcdef", buildReference{uuid: "0123456789abcdef0123456789abcdef"}},
		"blanks around":       {" 0a\n", buildReference{uuid: "0a"}},
		"hostile unique":      {"../../x", buildReference{uuid: "../../x"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := readStop([]byte(test.argument))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(buildReference{})); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadStopRefuses(t *testing.T) {
	for name, argument := range malformedStops() {
		t.Run(name, func(t *testing.T) {
			if got, err := readStop([]byte(argument)); err == nil {
				t.Errorf("request %+v, an error was expected", got)
			}
		})
	}
}

// malformedStops are arguments of stop: that no build can be meant by.
func malformedStops() map[string]string {
	return map[string]string{
		"empty":           "",
		"blank":           " \n",
		"array":           `["unit", 5]`,
		"string":          `"0123456789abcdef0123456789abcdef"`,
		"cut off":         `{"name": "unit", "numb`,
		"two objects":     `{"name": "unit", "number": 5}{}`,
		"no name":         `{"number": 5}`,
		"null name":       `{"name": null, "number": 5}`,
		"name a number":   `{"name": 5, "number": 5}`,
		"no number":       `{"name": "unit"}`,
		"null number":     `{"name": "unit", "number": null}`,
		"zero":            `{"name": "unit", "number": 0}`,
		"negative":        `{"name": "unit", "number": -5}`,
		"fraction":        `{"name": "unit", "number": 5.5}`,
		"number a word":   `{"name": "unit", "number": "five"}`,
		"number an array": `{"name": "unit", "number": [5]}`,
		"number too big":  `{"name": "unit", "number": 9223372036854775808}`,
		"two words":       "stop it",
		"1 MiB":           strings.Repeat("a", 1<<20),
		"1 MiB of JSON":   `{"name": "` + strings.Repeat("a", 1<<20) + `", "number": 5}`,
	}
}

func FuzzReadStop(f *testing.F) {
	for _, argument := range malformedStops() {
		if len(argument) < 1000 {
			f.Add([]byte(argument))
		}
	}
	f.Add([]byte(`{"name": "unit", "number": "5"}`))
	f.Add([]byte("0123456789abcdef0123456789abcdef"))
	f.Fuzz(func(t *testing.T, argument []byte) {
		request, err := readStop(argument)
		switch {
		case err != nil && request != (buildReference{}):
			t.Errorf("request %+v beside error %v", request, err)
		case err == nil && (request.uuid == "") == (request.number < 1):
			t.Errorf("request %+v names no build, or two", request)
		}
	})
}
