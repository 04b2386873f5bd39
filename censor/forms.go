package censor

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const (
	// MinLength is how many bytes a line of a value needs to be looked for. Anything shorter stands in every log without being a secret.
	MinLength = 4
	// minPart is the same for what is a value only within a value: a setting, a string of JSON. Many of those are no secrets (`kind: Config`).
	minPart = 8
	// MaxSize is how many bytes the values of one Censor should have together. Their forms take some thirty times as many.
	MaxSize = 64 << 10
)

// base64 that is wrapped has lines of so many characters: those of PEM and those of MIME, which is what the command base64 writes.
var wrapped = []int{64, 76}

// forms are the ways in which a value may stand on one line of a log. They may repeat, or be shorter than what is looked for. There are none where no line
// of the value is long enough.
//
// That is each line of it without the space around it: as it is, quoted, percent-encoded, and in base64, also where that is of a longer text (the
// user's name and the password in a header of HTTP). And the value as a whole in base64, on one line or wrapped.
func forms(value []byte) (all [][]byte) {
	found := texts(value)
	if len(found) == 0 {
		return nil
	}
	for _, text := range found {
		quoted := strconv.Quote(string(text))
		query := url.QueryEscape(string(text))
		for _, form := range []string{quoted[1 : len(quoted)-1], query, strings.ReplaceAll(query, "+", "%20"), url.PathEscape(string(text))} {
			all = append(all, []byte(form))
		}
		all = append(all, text)
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for before := range 3 {
				all = append(all, encodedWithin(encoding, text, before))
			}
		}
	}
	for _, value := range [][]byte{value, bytes.TrimSpace(value)} {
		for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			encoded := []byte(encoding.EncodeToString(value))
			all = append(all, encoded)
			for _, width := range wrapped {
				all = slices.AppendSeq(all, slices.Chunk(encoded, width))
			}
		}
	}
	return all
}

// encodedWithin is what the base64 of every text has in common in which there is this one after so many bytes, modulo 3, and anything after it.
func encodedWithin(encoding *base64.Encoding, text []byte, before int) []byte {
	padded := append(make([]byte, before), text...)
	// Each character has 6 bits: the first that has none of what is before, and the first that has some of what is after.
	from, to := (8*before+5)/6, 8*len(padded)/6
	return []byte(encoding.EncodeToString(padded)[from:to])
}

// texts are the lines of a value, and what may be secret by itself in a value that is a file of settings (NAME=VALUE, NAME: VALUE) or JSON.
func texts(value []byte) [][]byte {
	all := lines(value, MinLength)
	for _, line := range all {
		for _, separator := range []string{"=", ": "} {
			if _, setting, found := bytes.Cut(line, []byte(separator)); found {
				all = append(all, lines(bytes.Trim(setting, `"',;`), minPart)...)
			}
		}
	}
	var parsed any
	if json.Unmarshal(value, &parsed) == nil {
		all = appendStrings(all, parsed)
	}
	return all
}

// appendStrings appends the strings in a JSON value.
func appendStrings(all [][]byte, parsed any) [][]byte {
	switch parsed := parsed.(type) {
	case string:
		all = append(all, lines([]byte(parsed), minPart)...)
	case []any:
		for _, item := range parsed {
			all = appendStrings(all, item)
		}
	case map[string]any:
		for _, item := range parsed {
			all = appendStrings(all, item)
		}
	}
	return all
}

// lines are those lines of a text that have at least so many bytes, without the space around them.
func lines(text []byte, least int) (all [][]byte) {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) >= least {
			all = append(all, line)
		}
	}
	return all
}
