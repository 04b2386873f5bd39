// Package doctable lets tests hold documentation to the code: they read a table of a Markdown file and compare it with what the code does.
package doctable

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Rows are the cells of the first table below a heading of a file of docs/, without the head of the table. A cell is its text without blanks around
// it; a table has no `|` within its cells. The test fails where there is no such table.
func Rows(t testing.TB, file, heading string) [][]string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	text, err := os.ReadFile(filepath.Join(filepath.Dir(here), "..", "..", "docs", file))
	if err != nil {
		t.Fatal(err)
	}
	rows := rows(string(text), heading)
	if len(rows) == 0 {
		t.Fatalf("docs/%s has no table below the heading %q", file, heading)
	}
	return rows
}

func rows(text, heading string) [][]string {
	var rows [][]string
	below := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "#"):
			below = strings.TrimSpace(strings.TrimLeft(line, "#")) == heading
		case !below:
		case strings.HasPrefix(line, "|"):
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows = append(rows, cells)
		case len(rows) > 0:
			return rows[min(2, len(rows)):]
		}
	}
	return rows[min(2, len(rows)):]
}

// Code is the text of a cell that is one piece of code; ok is false where the cell is something else. Two backticks alone are the empty text.
func Code(cell string) (text string, ok bool) {
	if len(cell) < 2 || cell[0] != '`' || cell[len(cell)-1] != '`' || strings.Contains(cell[1:len(cell)-1], "`") {
		return "", false
	}
	return cell[1 : len(cell)-1], true
}
