// Package dashboard shows a Grafana dashboard without Grafana: it asks a Prometheus for what each panel shows, draws all panels on one page, and has
// Chromium take a picture of it. Rows, time series and numbers look as Grafana has them, near enough to see what people will see; of other panels
// the last values are listed.
package dashboard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"strings"
	"time"

	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

// Dashboard is what is drawn of Grafana's JSON model of one. The names are the model's, but for their case.
type Dashboard struct {
	Title      string
	Templating struct{ List []Variable }
	Panels     []Panel
}

// Variable is one that expressions may refer to.
type Variable struct {
	Name    string
	Current struct{ Value any }
}

// Panel is a rectangle of the dashboard, or a row, which is a title for those below.
type Panel struct {
	Type, Title, Description string

	// GridPos is in columns, of which there are 24, and in rows.
	GridPos struct{ X, Y, W, H int }

	FieldConfig struct {
		Defaults  Defaults
		Overrides []Override
	}
	Targets []Target

	// Panels are those of a row that is collapsed.
	Panels []Panel
}

// Defaults are how a panel shows values.
type Defaults struct {
	Unit       string
	Min, Max   *float64
	Thresholds *struct{ Steps []Threshold }
}

// Override changes how some lines are shown.
type Override struct {
	Matcher struct {
		ID      string
		Options any
	}
	Properties []struct {
		ID    string
		Value json.RawMessage
	}
}

// Threshold gives values from Value on a colour, all values if that is nil.
type Threshold struct {
	Value *float64
	Color string
}

// Target is an expression and what its lines are called.
type Target struct {
	Expr, LegendFormat string
	Hide               bool
}

// Read reads a dashboard as Grafana exports and imports it.
func Read(file string) (*Dashboard, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	dashboard := &Dashboard{}
	if err := json.Unmarshal(content, dashboard); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return dashboard, nil
}

// Shown is a panel with what Prometheus answered.
type Shown struct {
	Panel
	Series []Series
	// Refused says which expressions Prometheus does not take, and why.
	Refused []string
	// Notes say what else a reader of the panel would stumble over.
	Notes []string
}

// Series is one line of a panel.
type Series struct {
	Name   string
	Points []Point

	unnamed bool // the dashboard has a legend, which comes out empty
}

// Point is a value at a time. It is a number: what is none is left out.
type Point struct {
	Time  time.Time
	Value float64
}

// Empty tells whether a panel has nothing to show though it should.
func (s *Shown) Empty() bool { return s.Type != row && len(s.Series) == 0 && len(s.Refused) == 0 }

const row = "row" // the type of a panel

// Querier is the part of Prometheus' API that panels need.
type Querier interface {
	QueryRange(ctx context.Context, query string, over v1.Range, options ...v1.Option) (model.Value, v1.Warnings, error)
}

// Evaluate asks for what every panel shows over a time. interval is that of the scrapes. What Prometheus refuses is noted in the panel; an error says
// that it cannot be asked.
func (d *Dashboard) Evaluate(ctx context.Context, prometheus Querier, over v1.Range, interval time.Duration) ([]Shown, error) {
	variables := d.variables(over, interval)
	var all []Shown
	for _, panel := range d.all() {
		shown := Shown{Panel: panel}
		for _, target := range panel.Targets {
			if target.Hide {
				continue
			}
			target.Expr = interpolate(target.Expr, variables)
			if err := shown.ask(ctx, prometheus, target, over); err != nil {
				return nil, fmt.Errorf("panel %q: %w", panel.Title, err)
			}
		}
		shown.judge()
		all = append(all, shown)
	}
	return all, nil
}

// all panels, those of collapsed rows too.
func (d *Dashboard) all() []Panel {
	var all []Panel
	for _, panel := range d.Panels {
		all = append(append(all, panel), panel.Panels...)
	}
	return all
}

// variables are the dashboard's and those that Grafana has for every expression.
func (d *Dashboard) variables(over v1.Range, interval time.Duration) map[string]string {
	variables := map[string]string{
		"__interval":      model.Duration(over.Step).String(),
		"__rate_interval": model.Duration(max(over.Step+interval, 4*interval)).String(),
		"__range":         model.Duration(over.End.Sub(over.Start).Round(time.Second)).String(),
	}
	for _, variable := range d.Templating.List {
		value, chosen := variable.Current.Value.(string)
		if !chosen || value == "$__all" {
			value = ".*"
		}
		variables[variable.Name] = value
	}
	return variables
}

var variableReference = regexp.MustCompile(`\$\{(\w+)(?::\w+)?\}|\$(\w+)`)

// interpolate replaces $NAME, ${NAME} and ${NAME:FORMAT}. What is no variable stays: it is a group of label_replace, or Prometheus refuses it.
func interpolate(expression string, variables map[string]string) string {
	return variableReference.ReplaceAllStringFunc(expression, func(reference string) string {
		groups := variableReference.FindStringSubmatch(reference)
		if value, known := variables[groups[1]+groups[2]]; known {
			return value
		}
		return reference
	})
}

// ask adds the lines of one expression.
func (s *Shown) ask(ctx context.Context, prometheus Querier, target Target, over v1.Range) error {
	answer, warnings, err := prometheus.QueryRange(ctx, target.Expr, over)
	var refused *v1.Error
	if errors.As(err, &refused) && (refused.Type == v1.ErrBadData || refused.Type == v1.ErrExec) {
		s.Refused = append(s.Refused, fmt.Sprintf("%s: %s", target.Expr, refused.Msg))
		return nil
	}
	if err != nil {
		return err
	}
	s.Notes = append(s.Notes, warnings...)
	matrix, is := answer.(model.Matrix)
	if !is {
		return fmt.Errorf("the answer to %s is a %T", target.Expr, answer)
	}
	for _, stream := range matrix {
		series := Series{}
		series.Name, series.unnamed = lineName(target, stream.Metric)
		for _, sample := range stream.Values {
			if value := float64(sample.Value); !math.IsNaN(value) && !math.IsInf(value, 0) {
				series.Points = append(series.Points, Point{sample.Timestamp.Time(), value})
			}
		}
		if len(series.Points) > 0 {
			s.Series = append(s.Series, series)
		}
	}
	return nil
}

var labelReference = regexp.MustCompile(`\{\{\s*(.+?)\s*\}\}`)

// lineName is what Grafana calls a line: its legend, or else its labels. It tells whether there is a legend that comes out empty.
func lineName(target Target, metric model.Metric) (name string, empty bool) {
	if target.LegendFormat != "" && target.LegendFormat != "__auto" {
		name = strings.TrimSpace(labelReference.ReplaceAllStringFunc(target.LegendFormat, func(reference string) string {
			return string(metric[model.LabelName(labelReference.FindStringSubmatch(reference)[1])])
		}))
		empty = name == ""
	}
	switch {
	case name != "":
		return name, false
	case len(metric) > 0:
		return metric.String(), empty
	case empty:
		return "Value", true
	default:
		return target.Expr, false
	}
}

// judge notes what a reader would stumble over.
func (s *Shown) judge() {
	if s.Type == row {
		return
	}
	if s.Empty() {
		s.Notes = append(s.Notes, "no data")
	}
	if _, known := units[s.FieldConfig.Defaults.Unit]; !known {
		s.Notes = append(s.Notes, fmt.Sprintf("the unit %q is not known here", s.FieldConfig.Defaults.Unit))
	}
	times := map[string]int{}
	for _, series := range s.Series {
		times[series.Name]++
	}
	for _, series := range s.Series {
		name, count := series.Name, times[series.Name]
		times[name] = 0
		if count > 0 && series.unnamed {
			s.Notes = append(s.Notes, fmt.Sprintf("a line is called %q: its legend is empty", name))
		}
		if count > 1 {
			s.Notes = append(s.Notes, fmt.Sprintf("%d lines are called %q", count, name))
		}
	}
}
