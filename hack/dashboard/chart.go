package dashboard

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
)

// palette are the colours of lines, in their order.
var palette = []string{
	"#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#fade2a", "#447ebc", "#c15c17",
}

// colours are those that a dashboard calls by a name.
var colours = map[string]string{
	"green": "#73bf69", "yellow": "#fade2a", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2", "purple": "#b877d9", "text": "#ccccdc",
}

// named is a colour that may be called by a name.
func named(colour string) string { return cmp.Or(colours[colour], colour) }

// lineColour is that of a line: the one that an override fixes for its name, or else that of its place.
func (p *Panel) lineColour(place int, name string) string {
	for _, override := range p.FieldConfig.Overrides {
		if override.Matcher.ID != "byName" || override.Matcher.Options != name {
			continue
		}
		for _, property := range override.Properties {
			colour := struct{ FixedColor string }{}
			if property.ID == "color" && json.Unmarshal(property.Value, &colour) == nil {
				return named(colour.FixedColor)
			}
		}
	}
	return palette[place%len(palette)]
}

// chart is where the parts of a chart are, in pixels from its top left corner.
type chart struct {
	Width, Height            int
	Left, Right, Top, Bottom float64 // of what the lines are drawn in
	Lines                    []line
	Levels, Moments          []mark
}

type line struct{ Path, Colour string }

// mark is a place on an axis.
type mark struct {
	At   float64
	Text string
}

// drawChart draws the lines of a panel.
func drawChart(s *Shown, over v1.Range, width, height int) *chart {
	c := &chart{Width: width, Height: height, Left: 58, Right: float64(width) - 8, Top: 8, Bottom: float64(height) - 20}
	unit := s.FieldConfig.Defaults.Unit
	low, high := bounds(s)
	marks := levels(low, high, unit == "bytes")
	low, high = marks[0], marks[len(marks)-1]
	x := func(at time.Time) float64 {
		return c.Left + (c.Right-c.Left)*float64(at.Sub(over.Start))/float64(over.End.Sub(over.Start))
	}
	y := func(value float64) float64 { return c.Bottom - (c.Bottom-c.Top)*(value-low)/(high-low) }
	for _, level := range marks {
		c.Levels = append(c.Levels, mark{tenth(y(level)), format(unit, level)})
	}
	const moments = 4
	for i := 1; i < moments; i++ {
		at := over.Start.Add(over.End.Sub(over.Start) * time.Duration(i) / moments)
		c.Moments = append(c.Moments, mark{tenth(x(at)), at.UTC().Format(time.TimeOnly)})
	}
	for i, series := range s.Series {
		c.Lines = append(c.Lines, line{path(series.Points, over.Step, x, y), s.lineColour(i, series.Name)})
	}
	return c
}

// bounds are the lowest and the highest value, where the panel does not say.
func bounds(s *Shown) (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, series := range s.Series {
		for _, point := range series.Points {
			low, high = min(low, point.Value), max(high, point.Value)
		}
	}
	if s.FieldConfig.Defaults.Min != nil {
		low = *s.FieldConfig.Defaults.Min
	}
	if s.FieldConfig.Defaults.Max != nil {
		high = *s.FieldConfig.Defaults.Max
	}
	return low, high
}

// levels are the round numbers that an axis from low to high shows, at least two, evenly apart. They go as far beyond as they must.
func levels(low, high float64, binary bool) []float64 {
	if high <= low {
		high = low + 1
	}
	unit := 1.0
	if binary {
		unit = math.Pow(1024, max(0, math.Floor(math.Log2(high-low)/10)))
	}
	step := roundUp((high-low)/unit/5) * unit
	var marks []float64
	for i := math.Floor(low / step); i <= math.Ceil(high/step); i++ {
		marks = append(marks, i*step)
	}
	return marks
}

// roundUp gives 1, 2 or 5 times a power of ten.
func roundUp(value float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(value)))
	for _, factor := range []float64{1, 2, 5} {
		if factor*power >= value {
			return factor * power
		}
	}
	return 10 * power
}

// path is a line through points, with a gap where a step has none. A point alone is a dot.
func path(points []Point, step time.Duration, x func(time.Time) float64, y func(float64) float64) string {
	var text strings.Builder
	for i, point := range points {
		if i == 0 || point.Time.Sub(points[i-1].Time) > step*3/2 {
			fmt.Fprintf(&text, "M%.1f %.1fh0", x(point.Time), y(point.Value))
		} else {
			fmt.Fprintf(&text, "L%.1f %.1f", x(point.Time), y(point.Value))
		}
	}
	return text.String()
}

func tenth(value float64) float64 { return math.Round(value*10) / 10 }

// numbers are the last values of a panel beside each other, with what was before as a line behind.
type numbers struct {
	Width, Height int
	Each          []figure
}

type figure struct {
	Name, Text, Colour, Path string
	Middle, TextAt, NameAt   float64
	Size, NameSize           float64 // of the text, of the name
}

// drawNumbers draws a panel of numbers. The name of the only one is left out, as Grafana does.
func drawNumbers(s *Shown, over v1.Range, width, height int) *numbers {
	n := &numbers{Width: width, Height: height}
	low, high := bounds(s)
	if high <= low {
		high = low + 1
	}
	each := float64(width) / float64(max(1, len(s.Series)))
	for i, series := range s.Series {
		last := series.Points[len(series.Points)-1].Value
		f := figure{Text: format(s.FieldConfig.Defaults.Unit, last), Colour: colourOf(s.FieldConfig.Defaults, last)}
		f.Middle, f.TextAt, f.NameAt = tenth(each*(float64(i)+.5)), tenth(float64(height)*.5), tenth(float64(height)*.72)
		f.Size = tenth(min(48, each/float64(len(f.Text)+1)*1.4))
		if len(s.Series) > 1 {
			f.Name, f.NameSize = series.Name, tenth(min(11, each/float64(utf8.RuneCountInString(series.Name)+1)*1.7))
		}
		f.Path = path(series.Points, over.Step, func(at time.Time) float64 {
			return each*float64(i) + 6 + (each-12)*float64(at.Sub(over.Start))/float64(over.End.Sub(over.Start))
		}, func(value float64) float64 { return float64(height) - 2 - float64(height)/3*(value-low)/(high-low) })
		n.Each = append(n.Each, f)
	}
	return n
}

// colourOf a value. Grafana's thresholds, where a panel has none, are green, and red from 80 on.
func colourOf(defaults Defaults, value float64) string {
	eighty := 80.0
	steps := []Threshold{{Color: "green"}, {&eighty, "red"}}
	if defaults.Thresholds != nil {
		steps = defaults.Thresholds.Steps
	}
	colour := colours["text"]
	for _, step := range steps {
		if step.Value == nil || value >= *step.Value {
			colour = named(step.Color)
		}
	}
	return colour
}
