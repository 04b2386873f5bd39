package dashboard

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

var (
	begin = time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	over  = v1.Range{Start: begin, End: begin.Add(2 * time.Minute), Step: time.Second}
)

// answers plays a Prometheus: it gives the values, a second apart, for each expression, and refuses what it does not know.
type answers map[string][]*model.SampleStream

func (a answers) QueryRange(_ context.Context, query string, _ v1.Range, _ ...v1.Option) (model.Value, v1.Warnings, error) {
	if query == "down" {
		return nil, nil, errors.New("connection refused")
	}
	streams, known := a[query]
	if !known {
		return nil, nil, &v1.Error{Type: v1.ErrBadData, Msg: "parse error"}
	}
	return model.Matrix(streams), nil, nil
}

func stream(metric model.Metric, values ...float64) *model.SampleStream {
	s := &model.SampleStream{Metric: metric}
	for i, value := range values {
		s.Values = append(s.Values, model.SamplePair{
			Timestamp: model.TimeFromUnixNano(begin.Add(time.Duration(i) * time.Second).UnixNano()), Value: model.SampleValue(value),
		})
	}
	return s
}

// read is Read of a dashboard with these panels.
func read(t *testing.T, panels string) *Dashboard {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dashboard.json")
	content := `{"title": "a dashboard", "templating": {"list": [{"name": "class", "current": {"value": "large"}}, {"name": "all", "current": {"value": ["$__all"]}}]}, "panels": [` + panels + `]}`
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	dashboard, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	return dashboard
}

func TestInterpolate(t *testing.T) {
	t.Parallel()
	variables := read(t, "").variables(over, 2*time.Second)
	for expression, want := range map[string]string{
		`rate(a[$__rate_interval])`:              `rate(a[8s])`,
		`rate(a[${__interval}])`:                 `rate(a[1s])`,
		`increase(a[$__range])`:                  `increase(a[2m])`,
		`a{class="$class", job=~"${all:regex}"`:  `a{class="large", job=~".*"`,
		`label_replace(a, "b", "$1", "c", "x$")`: `label_replace(a, "b", "$1", "c", "x$")`,
		`a{b="$unknown"}`:                        `a{b="$unknown"}`,
	} {
		if got := interpolate(expression, variables); got != want {
			t.Errorf("%s became %s rather than %s", expression, got, want)
		}
	}
}

func TestLineName(t *testing.T) {
	t.Parallel()
	labels := model.Metric{"server": "one", "class": "large"}
	for name, test := range map[string]struct {
		legend string
		metric model.Metric
		want   string
		empty  bool
	}{
		"labels":             {"{{server}}, {{ class }}", labels, "one, large", false},
		"a label is missing": {"{{server}} {{job}}", labels, "one", false},
		"no legend":          {"", labels, `{class="large", server="one"}`, false},
		"auto":               {"__auto", model.Metric{"__name__": "up"}, "up", false},
		"nothing":            {"", nil, "expression", false},
		"empty":              {"{{class}}", nil, "Value", true},
		"empty, with labels": {"{{pod}}", model.Metric{"class": "large"}, `{class="large"}`, true},
	} {
		got, empty := lineName(Target{Expr: "expression", LegendFormat: test.legend}, test.metric)
		if got != test.want || empty != test.empty {
			t.Errorf("%s: %q, empty %v, rather than %q, empty %v", name, got, empty, test.want, test.empty)
		}
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		unit  string
		value float64
		want  string
	}{
		{"none", 0, "0"}, {"none", 3.14159, "3.14"}, {"", 0.30000000000000004, "0.3"}, {"none", 12345.6, "12346"}, {"none", -1.5, "-1.5"},
		{"short", 1500, "1.5 K"}, {"percentunit", .125, "12.5%"}, {"percent", 12.5, "12.5%"},
		{"bytes", 1023, "1023 B"}, {"bytes", 1536 << 10, "1.5 MiB"}, {"decbytes", 1.5e6, "1.5 MB"},
		{"s", 0, "0 s"}, {"s", 2e-5, "20 µs"}, {"s", .0125, "12.5 ms"}, {"s", 59, "59 s"}, {"s", 90, "1.5 min"}, {"s", 5400, "1.5 hour"}, {"ms", 20, "20 ms"},
		{"reqps", 2.5, "2.5 req/s"}, {"unheard of", 2.5, "2.5"},
	} {
		if got := format(test.unit, test.value); got != test.want {
			t.Errorf("%v in %q is %q rather than %q", test.value, test.unit, got, test.want)
		}
	}
}

func TestLevels(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		low, high float64
		binary    bool
		want      []float64
	}{
		"small":       {0, 1, false, []float64{0, .2, .4, .6, .8, 1}},
		"not round":   {0, 7, false, []float64{0, 2, 4, 6, 8}},
		"nothing":     {0, 0, false, []float64{0, .2, .4, .6, .8, 1}},
		"below zero":  {-3, 4, false, []float64{-4, -2, 0, 2, 4}},
		"far from it": {102, 104, false, []float64{102, 102.5, 103, 103.5, 104}},
		"bytes":       {0, 90 << 20, true, []float64{0, 20 << 20, 40 << 20, 60 << 20, 80 << 20, 100 << 20}},
		"few bytes":   {0, 1, true, []float64{0, .2, .4, .6, .8, 1}},
	} {
		got := levels(test.low, test.high, test.binary)
		if diff := cmp.Diff(test.want, got, cmp.Comparer(func(a, b float64) bool { return math.Abs(a-b) < 1e-9 })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestColourOf(t *testing.T) {
	t.Parallel()
	zero, one := 0.0, 1.0
	mended := Defaults{Thresholds: &struct{ Steps []Threshold }{[]Threshold{{nil, "red"}, {&one, "#123456"}}}}
	none := Defaults{Thresholds: &struct{ Steps []Threshold }{[]Threshold{{&zero, "red"}}}}
	for name, test := range map[string]struct {
		defaults Defaults
		value    float64
		want     string
	}{
		"as Grafana has it": {Defaults{}, 79, colours["green"]},
		"and above":         {Defaults{}, 80, colours["red"]},
		"below":             {mended, 0, colours["red"]},
		"at":                {mended, 1, "#123456"},
		"below all":         {none, -1, colours["text"]},
	} {
		if got := colourOf(test.defaults, test.value); got != test.want {
			t.Errorf("%s: %s rather than %s", name, got, test.want)
		}
	}
}

func TestPathHasGaps(t *testing.T) {
	t.Parallel()
	at := func(seconds int, value float64) Point {
		return Point{begin.Add(time.Duration(seconds) * time.Second), value}
	}
	got := path([]Point{at(0, 1), at(1, 2), at(5, 3), at(6, 3), at(9, 4)}, time.Second,
		func(moment time.Time) float64 { return moment.Sub(begin).Seconds() }, func(value float64) float64 { return value })
	if want := "M0.0 1.0h0L1.0 2.0M5.0 3.0h0L6.0 3.0M9.0 4.0h0"; got != want {
		t.Errorf("%s rather than %s", got, want)
	}
}

const panels = `
	{"type": "row", "title": "a row", "gridPos": {"x": 0, "y": 0, "w": 24, "h": 1}, "panels": [
		{"type": "stat", "title": "numbers", "gridPos": {"x": 0, "y": 1, "w": 6, "h": 6}, "targets": [{"expr": "pair", "legendFormat": "{{server}}"}]}]},
	{"type": "timeseries", "title": "lines", "description": "a & b", "gridPos": {"x": 6, "y": 1, "w": 6, "h": 6}, "fieldConfig": {"defaults": {"unit": "s", "min": 0},
			"overrides": [{"matcher": {"id": "byName", "options": "one"}, "properties": [{"id": "unit", "value": "s"}, {"id": "color", "value": {"mode": "fixed", "fixedColor": "purple"}}]}]},
		"targets": [{"expr": "pair", "legendFormat": "{{server}}"}, {"expr": "hidden", "hide": true}]},
	{"type": "timeseries", "title": "alike", "gridPos": {"x": 12, "y": 1, "w": 6, "h": 6}, "targets": [{"expr": "pair", "legendFormat": "the same"}, {"expr": "bare", "legendFormat": "{{class}}"}]},
	{"type": "table", "title": "a table", "gridPos": {"x": 18, "y": 1, "w": 6, "h": 6}, "fieldConfig": {"defaults": {"unit": "furlongs"}}, "targets": [{"expr": "pair", "legendFormat": "{{server}}"}]},
	{"type": "timeseries", "title": "nothing", "gridPos": {"x": 0, "y": 7, "w": 6, "h": 6}, "targets": [{"expr": "nothing"}, {"expr": "not numbers"}]},
	{"type": "timeseries", "title": "refused", "gridPos": {"x": 6, "y": 7, "w": 6, "h": 6}, "targets": [{"expr": "pair"}, {"expr": "sum("}]}`

var prometheus = answers{
	"pair":        {stream(model.Metric{"server": "one"}, 1, 2, 3), stream(model.Metric{"server": "two"}, 4, 5, 6)},
	"bare":        {stream(nil, 7)},
	"nothing":     {},
	"not numbers": {stream(nil, math.NaN(), math.Inf(1))},
}

func TestEvaluate(t *testing.T) {
	t.Parallel()
	all, err := read(t, panels).Evaluate(t.Context(), prometheus, over, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		Lines          []string
		Refused, Notes []string
		Empty          bool
	}
	got := map[string]result{}
	for _, shown := range all {
		r := result{Refused: shown.Refused, Notes: shown.Notes, Empty: shown.Empty()}
		for _, series := range shown.Series {
			r.Lines = append(r.Lines, series.Name)
		}
		got[shown.Title] = r
	}
	want := map[string]result{
		"a row":   {},
		"numbers": {Lines: []string{"one", "two"}},
		"lines":   {Lines: []string{"one", "two"}},
		"alike": {
			Lines: []string{"the same", "the same", "Value"},
			Notes: []string{`2 lines are called "the same"`, `a line is called "Value": its legend is empty`},
		},
		"a table": {Lines: []string{"one", "two"}, Notes: []string{`the unit "furlongs" is not known here`}},
		"nothing": {Notes: []string{"no data"}, Empty: true},
		"refused": {Lines: []string{`{server="one"}`, `{server="two"}`}, Refused: []string{"sum(: parse error"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("panels differ (-want +got):\n%s", diff)
	}
}

// A Prometheus that does not answer is not an expression that is refused.
func TestEvaluateWithoutPrometheus(t *testing.T) {
	t.Parallel()
	_, err := read(t, `{"type": "stat", "title": "a panel", "targets": [{"expr": "down"}]}`).Evaluate(t.Context(), prometheus, over, time.Second)
	if err == nil || !strings.Contains(err.Error(), `panel "a panel": connection refused`) {
		t.Errorf("error %v", err)
	}
}

func TestDraw(t *testing.T) {
	t.Parallel()
	dashboard := read(t, panels)
	all, err := dashboard.Evaluate(t.Context(), prometheus, over, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	page, err := dashboard.Draw("of a test", all, over)
	if err != nil {
		t.Fatal(err)
	}
	if want := titleHeight + 13*rowHeight; page.Height != want {
		t.Errorf("the page is %d high rather than %d", page.Height, want)
	}
	html := string(page.HTML)
	for _, want := range []string{
		"a dashboard", "of a test", "2026-01-02 03:04:00 to 2026-01-02 03:06:00 UTC",
		"<h2>lines</h2>", "<p>a &amp; b</p>", ">6 s</text>", ">03:05:00</text>", `<path stroke="#f2cc0c" d="M`, `<path stroke="#b877d9" d="M`,
		`>no data</p>`, "refused: sum(: parse error", "<td>two</td><td>6</td>",
	} {
		if !strings.Contains(html, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	if strings.Contains(html, "ZgotmplZ") {
		t.Error("a value was left out of the page as unsafe")
	}
}
