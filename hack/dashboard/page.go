package dashboard

import (
	"bytes"
	_ "embed"
	"html/template"
	"time"
	"unicode/utf8"

	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
)

// Sizes are in pixels.
const (
	pageWidth   = 1400
	columns     = 24
	rowHeight   = 38
	gap         = 8
	titleHeight = 56 // of the page
	border      = 8  // within a panel
	headHeight  = 22 // of a panel
	aboutHeight = 18
	entryHeight = 18 // of a legend
	noteHeight  = 18
	letterWidth = 6.4
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// Page is a dashboard drawn, in a file that needs no other.
type Page struct {
	HTML          []byte
	Width, Height int
}

// box is a panel on the page.
type box struct {
	Left, Top, Width, Height int
	Row                      bool
	Title, Description       string
	Refused, Notes           []string

	// One of these, or none: a chart with its legend, numbers, or a table of values.
	Chart        *chart
	Legend       []entry
	LegendHeight int
	Numbers      *numbers
	Values       []entry
}

type entry struct{ Name, Text, Colour string }

// Draw draws a dashboard over the time it was evaluated for. what says in a line what it is of.
func (d *Dashboard) Draw(what string, all []Shown, over v1.Range) (*Page, error) {
	page := struct {
		Title, What, From, To string
		Width, Height         int
		Boxes                 []box
	}{Title: d.Title, What: what, From: over.Start.UTC().Format(time.DateTime), To: over.End.UTC().Format(time.DateTime), Width: pageWidth}
	for i := range all {
		b := drawPanel(&all[i], over)
		page.Boxes = append(page.Boxes, b)
		page.Height = max(page.Height, b.Top+b.Height+gap)
	}
	html := &bytes.Buffer{}
	if err := pageTemplate.Execute(html, page); err != nil {
		return nil, err
	}
	return &Page{html.Bytes(), page.Width, page.Height}, nil
}

func drawPanel(s *Shown, over v1.Range) box {
	const width = pageWidth - gap // of all columns, with a gap after each panel
	at := s.GridPos
	b := box{
		Left: gap + at.X*width/columns, Width: at.W*width/columns - gap, Top: titleHeight + at.Y*rowHeight, Height: at.H*rowHeight - gap,
		Row: s.Type == row, Title: s.Title, Description: s.Description, Refused: s.Refused, Notes: s.Notes,
	}
	inner, free := b.Width-2*border, b.Height-2*border-headHeight-noteHeight*len(s.Notes)
	if s.Description != "" {
		free -= aboutHeight
	}
	switch {
	case len(s.Series) == 0 || len(s.Refused) > 0:
	case s.Type == "stat":
		b.Numbers = drawNumbers(s, over, inner, max(free, 1))
	case s.Type == "timeseries":
		for i, series := range s.Series {
			b.Legend = append(b.Legend, entry{Name: series.Name, Colour: s.lineColour(i, series.Name)})
		}
		b.LegendHeight = min(legendLines(b.Legend, inner)*entryHeight, b.Height*35/100) // Grafana scrolls then
		b.Chart = drawChart(s, over, inner, max(free-b.LegendHeight, 1))
	default:
		for _, series := range s.Series {
			last := series.Points[len(series.Points)-1].Value
			b.Values = append(b.Values, entry{Name: series.Name, Text: format(s.FieldConfig.Defaults.Unit, last)})
		}
	}
	return b
}

// legendLines is how many lines a legend takes.
func legendLines(legend []entry, width int) int {
	lines, used := 1, 0
	for _, entry := range legend {
		needs := 30 + int(float64(utf8.RuneCountInString(entry.Name))*letterWidth)
		if used > 0 && used+needs > width {
			lines, used = lines+1, 0
		}
		used += needs
	}
	return lines
}
