// Package censor keeps the values of Secrets out of logs. It guards against accidents: a script that prints a token, a client that shows its headers.
// Who wants a secret out of a build can always write it in a way that nothing recognises.
package censor

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"slices"
)

// mask stands where a secret was. It tells nothing of it, not even its length.
const mask = "****"

// Censor finds values, in each of the forms that forms.go has, and puts a mask in their place. Several goroutines may use one.
type Censor struct {
	forms   map[uint32][][]byte // by their first MinLength bytes, longest first; none has a newline in it
	begins  [1 << 16]bool       // whether a form begins with these two bytes: most text is done with by one look
	longest int
}

// New censors values. Of a value those lines count that have at least MinLength bytes.
func New(values ...[]byte) *Censor {
	c := &Censor{forms: map[uint32][][]byte{}}
	known := map[string]bool{}
	for _, value := range values {
		for _, form := range forms(value) {
			if len(form) < MinLength || known[string(form)] {
				continue
			}
			known[string(form)] = true
			c.forms[key(form)] = append(c.forms[key(form)], form)
			c.begins[binary.BigEndian.Uint16(form)] = true
			c.longest = max(c.longest, len(form))
		}
	}
	for _, forms := range c.forms {
		slices.SortFunc(forms, func(a, b []byte) int { return cmp.Compare(len(b), len(a)) })
	}
	return c
}

// key is the first MinLength bytes of a text.
func key(text []byte) uint32 { return binary.BigEndian.Uint32(text) }

// Reader is a log without the values: wherever one stands there is a mask, and one mask where several touch or overlap. Lines stay lines. What of a
// value the beginning or the end of the log has cut off counts as that value, where at least MinLength bytes of it are there.
//
// What it gives does not depend on the pieces the source comes in. A line that has ended is given at once; of one that has not, it holds back what may
// turn out to be a value, which is never more than the longest of them in its longest form. An error of the source but io.EOF comes after what was known
// by then, and without what was held back. A nil Censor has nothing to hide.
func (c *Censor) Reader(source io.Reader) io.Reader {
	if c == nil {
		return source
	}
	return &reader{censor: c, source: source, piece: make([]byte, 32<<10)}
}

type reader struct {
	censor *Censor
	source io.Reader
	err    error        // of the source: it comes when all that is ready was given
	piece  []byte       // room for what is read at once
	held   []byte       // read, and not decided yet
	ready  bytes.Buffer // decided, and not given yet

	begun   bool
	covered int  // how many of the next bytes belong to a value
	masking bool // the last byte did
}

func (r *reader) Read(target []byte) (int, error) {
	for r.ready.Len() == 0 {
		if r.err != nil {
			return 0, r.err
		}
		var count int
		count, r.err = r.source.Read(r.piece)
		r.held = append(r.held, r.piece[:count]...)
		r.held = append(r.held[:0], r.held[r.decide():]...)
	}
	return r.ready.Read(target)
}

// ending says what comes after a text.
type ending int

const (
	open  ending = iota // perhaps more of its line
	whole               // the end of its line
	cut                 // the end of the log, in the middle of its line
)

// decide moves what can be decided out of the text that is held, and tells how many bytes of that are done.
func (r *reader) decide() int {
	done := 0
	for done < len(r.held) {
		line, end := r.held[done:], open
		if newline := bytes.IndexByte(line, '\n'); newline >= 0 {
			line, end = line[:newline], whole
		} else if errors.Is(r.err, io.EOF) {
			end = cut
		}
		if !r.begun {
			if end == open && len(line) < r.censor.longest {
				break
			}
			r.begun, r.covered = true, r.censor.remainder(line)
		}
		done += r.scan(line, end)
		if end != whole {
			break
		}
		r.ready.WriteByte('\n')
		r.masking = false
		done++
	}
	return done
}

// scan decides a line, or as much of it as can be decided, and tells how many bytes that is.
func (r *reader) scan(line []byte, end ending) int {
	for at, char := range line {
		length, wait := r.censor.match(line[at:], end)
		if wait {
			return at
		}
		r.covered = max(r.covered, length)
		switch {
		case r.covered == 0:
			r.ready.WriteByte(char)
		case !r.masking:
			r.ready.WriteString(mask)
		}
		r.masking = r.covered > 0
		r.covered = max(r.covered-1, 0)
	}
	return len(line)
}

// match is how many bytes of a text, from its first, are the longest form that stands there; 0 for none. Or it cannot be told before more comes.
func (c *Censor) match(text []byte, end ending) (length int, wait bool) {
	switch {
	case len(text) >= 2 && !c.begins[binary.BigEndian.Uint16(text)]:
		return 0, false
	case len(text) < MinLength:
		return 0, end == open
	}
	for _, form := range c.forms[key(text)] {
		switch {
		case bytes.HasPrefix(text, form):
			return len(form), false
		case end == open && bytes.HasPrefix(form, text):
			return 0, true
		case end == cut && bytes.HasPrefix(form, text):
			return len(text), false
		}
	}
	return 0, false
}

// remainder is how many bytes of a text, from its first, are the longest end of a form that stands there; 0 for less than MinLength.
func (c *Censor) remainder(text []byte) (length int) {
	for _, forms := range c.forms {
		for _, form := range forms {
			for rest := min(len(form)-1, len(text)); rest >= MinLength && rest > length; rest-- {
				if bytes.HasPrefix(text, form[len(form)-rest:]) {
					length = rest
				}
			}
		}
	}
	return length
}
