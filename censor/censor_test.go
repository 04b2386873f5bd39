package censor

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// read is a log as it is shown.
func read(t rapid.TB, c *Censor, source io.Reader) string {
	t.Helper()
	shown, err := io.ReadAll(c.Reader(source))
	if err != nil {
		t.Fatal(err)
	}
	return string(shown)
}

const privateKey = "-----BEGIN KEY-----\nMIIEowIBAAKCAQEAxyz\r\n  b0Zg8Qk7yM2c\nQA==\n-----END KEY-----\n"

func TestCensor(t *testing.T) {
	// What a tool shows of a value that it was given as it is.
	encoded := base64.StdEncoding.EncodeToString
	basic := encoded([]byte("bob:hunter2!"))
	long := strings.Repeat("0123456789abcdef", 12)
	for name, test := range map[string]struct {
		values []string
		log    string
		want   string
	}{
		"nothing to hide":          {nil, "hunter2\n", "hunter2\n"},
		"nothing to see":           {[]string{"hunter2"}, "", ""},
		"nothing of it there":      {[]string{"hunter2"}, "one\ntwo\n\nhunter\n2\n", "one\ntwo\n\nhunter\n2\n"},
		"as it is":                 {[]string{"hunter2"}, "password=hunter2;\n", "password=****;\n"},
		"with another at its side": {[]string{"hunter2", "rosebud"}, "hunter2rosebud rosebud\n", "**** ****\n"},
		"twice":                    {[]string{"hunter2"}, "hunter2hunter2\n", "****\n"},
		"overlapping itself":       {[]string{"abab"}, "ababab.abaab\n", "****.abaab\n"},
		"overlapping another":      {[]string{"abcdef", "efghij"}, "abcdefghij abcdeefghij\n", "**** abcde****\n"},
		"within another":           {[]string{"hunter2", "my hunter2 key"}, "my hunter2 key, my hunter2 kex\n", "****, my **** kex\n"},
		"its beginning twice":      {[]string{"aaab"}, "aaaaab\n", "aa****\n"},
		"on its last line":         {[]string{"hunter2"}, "x\nhunter2", "x\n****"},
		"with space around it":     {[]string{" \thunter2\r\n"}, ">hunter2<\n", ">****<\n"},
		"in other letters":         {[]string{"hunter2"}, "Hunter2\n", "Hunter2\n"},
		"not text":                 {[]string{"\xff\x00\xfe\x01\n"}, "a\xff\x00\xfe\x01b\xff\n", "a****b\xff\n"},
		"empty":                    {[]string{"", " \n", "hunter2"}, "\n \nhunter2\n", "\n \n****\n"},
		"shorter than any secret":  {[]string{"abc"}, "abc YWJj\n", "abc YWJj\n"}, // such a Secret is refused before

		"several lines":                  {[]string{privateKey}, privateKey, "****\n****\r\n  ****\n****\n****\n"},
		"several lines, escaped in one":  {[]string{privateKey}, `{"key":"-----BEGIN KEY-----\nMIIEowIBAAKCAQEAxyz\r\n  b0Zg8Qk7yM2c\nQA==\n"}`, `{"key":"****\n****\r\n  ****\n****\n"}`},
		"several lines, but short ones":  {[]string{"{\nhunter2\n}\n"}, "{\nhunter2\n}\n", "{\n****\n}\n"},
		"quotes in it, escaped":          {[]string{`a"b\c"d`}, `{"x":"a\"b\\c\"d"}`, `{"x":"****"}`},
		"percent-encoded":                {[]string{"p@ss/word 1"}, "https://me:p%40ss%2Fword%201@x?p=p%40ss%2Fword+1&q=" + url.QueryEscape("p@ss/word 1"), "https://me:****@x?p=****&q=****"},
		"in base64":                      {[]string{"hunter2!"}, "x " + encoded([]byte("hunter2!")) + " y", "x **** y"},
		"in base64, with its newline":    {[]string{"hunter2!\n"}, "x " + encoded([]byte("hunter2!\n")) + " y", "x **** y"},
		"in base64, within more":         {[]string{"hunter2!"}, "Authorization: Basic " + basic, "Authorization: Basic " + basic[:6] + "****"},
		"in base64, of several lines":    {[]string{privateKey}, "key: " + encoded([]byte(privateKey)) + "\n", "key: ****\n"},
		"in base64, wrapped as MIME has": {[]string{long}, wrap(encoded([]byte(long)), 76), "****\n****\n****\n****\n"},
		"in base64, wrapped as PEM has":  {[]string{long}, wrap(encoded([]byte(long)), 64), "****\n****\n****\n****\n"},
		"in the other base64":            {[]string{"\xfb\xff\xfe~~~???"}, base64.RawURLEncoding.EncodeToString([]byte("\xfb\xff\xfe~~~???")), "****"},

		"settings": {
			[]string{"export USER=robot\nTOKEN='hunter2-hunter2';\nkind: Config\npassword: rosebud-rosebud\n"},
			"TOKEN=hunter2-hunter2 rosebud-rosebud robot Config\n", "TOKEN=**** **** robot Config\n",
		},
		"JSON": {
			[]string{`{"auths":{"registry.example.org":{"password":"hunter2-hunter2","auth":"cm9ib3Q6aHVudGVyMi1odW50ZXIy","tags":["rosebud-rosebud",1,null]}}}`},
			"registry.example.org hunter2-hunter2 rosebud-rosebud cm9ib3Q6aHVudGVyMi1odW50ZXIy", "registry.example.org **** **** ****",
		},
		"several lines in JSON": {[]string{`{"private_key":"line-one-of-it\nline-two-of-it\n"}`}, "line-one-of-it\nline-two-of-it\n", "****\n****\n"},

		"the end of it at the beginning":             {[]string{"hunter2-rosebud"}, "bud\nhunter2\n", "bud\nhunter2\n"},
		"more of its end at the beginning":           {[]string{"hunter2-rosebud"}, "rosebud and more\nrosebud\n", "**** and more\nrosebud\n"},
		"its end, and the whole, at the beginning":   {[]string{"ababab"}, "bababab.\n", "****.\n"},
		"the beginning of it at the end":             {[]string{"hunter2-rosebud"}, "x\nhun", "x\nhun"},
		"more of its beginning at the end":           {[]string{"hunter2-rosebud"}, "x\nhunter2-", "x\n****"},
		"its beginning at the end of a line":         {[]string{"hunter2-rosebud"}, "hunter2-\nrosebud\n", "hunter2-\nrosebud\n"},
		"a shorter one, and a longer one cut off":    {[]string{"hunter2", "hunter2-rosebud"}, "x\nhunter2-ros", "x\n****"},
		"a shorter one, where the longer one is not": {[]string{"hunter2", "hunter2-rosebud"}, "hunter2-rose\n", "****-rose\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var values [][]byte
			for _, value := range test.values {
				values = append(values, []byte(value))
			}
			c := New(values...)
			for way, source := range map[string]io.Reader{
				"at once":      strings.NewReader(test.log),
				"by the byte":  iotest.OneByteReader(strings.NewReader(test.log)),
				"by halves":    iotest.HalfReader(strings.NewReader(test.log)),
				"with the end": iotest.DataErrReader(strings.NewReader(test.log)),
			} {
				if got := read(t, c, source); got != test.want {
					t.Errorf("%s: got %q, want %q", way, got, test.want)
				}
			}
		})
	}
}

// wrap puts an end of line after so many characters, and at the end.
func wrap(text string, width int) string {
	var out strings.Builder
	for piece := range slices.Chunk([]byte(text), width) {
		fmt.Fprintf(&out, "%s\n", piece)
	}
	return out.String()
}

func TestNilCensorHidesNothing(t *testing.T) {
	var c *Censor
	if got := read(t, c, strings.NewReader("hunter2\n")); got != "hunter2\n" {
		t.Errorf("got %q", got)
	}
}

// censorAtOnce is what Reader does, said in another way: of a whole log, byte by byte, whether it belongs to a value.
func censorAtOnce(c *Censor, log string) string {
	hidden := make([]bool, len(log))
	hide := func(from, length int) {
		for i := range length {
			hidden[from+i] = true
		}
	}
	for _, forms := range c.forms {
		for _, form := range forms {
			for at := range log {
				if strings.HasPrefix(log[at:], string(form)) {
					hide(at, len(form))
				}
			}
			for part := MinLength; part < len(form); part++ {
				if strings.HasPrefix(log, string(form[len(form)-part:])) {
					hide(0, part)
				}
				if strings.HasSuffix(log, string(form[:part])) {
					hide(len(log)-part, part)
				}
			}
		}
	}
	var out strings.Builder
	for at := range len(log) {
		switch {
		case !hidden[at]:
			out.WriteByte(log[at])
		case at == 0 || !hidden[at-1]:
			out.WriteString(mask)
		}
	}
	return out.String()
}

// piecewise gives a log in pieces of these lengths, over and over.
type piecewise struct {
	log     string
	lengths []int
	next    int
}

func (p *piecewise) Read(target []byte) (int, error) {
	if p.log == "" {
		return 0, io.EOF
	}
	length := p.lengths[p.next%len(p.lengths)]
	p.next++
	count := copy(target, p.log[:min(length, len(p.log))])
	p.log = p.log[count:]
	return count, nil
}

// checkAnyPieces holds for any values, log and lengths of pieces: what is shown is the same, has as many lines, and none of the values.
func checkAnyPieces(t rapid.TB, values []string, log string, lengths []int) {
	t.Helper()
	var given [][]byte
	for _, value := range values {
		given = append(given, []byte(value))
	}
	c := New(given...)
	want := censorAtOnce(c, log)
	if got := read(t, c, &piecewise{log: log, lengths: lengths}); got != want {
		t.Fatalf("values %q, log %q in pieces of %v: got %q, want %q", values, log, lengths, got, want)
	}
	if was, is := strings.Count(log, "\n"), strings.Count(want, "\n"); was != is {
		t.Errorf("%d lines became %d", was, is)
	}
	for _, value := range values {
		// A value with an asterisk in it may come about by masking another.
		if value = strings.TrimSpace(value); !strings.Contains(value, "*") && len(lines([]byte(value), MinLength)) > 0 && strings.Contains(want, value) {
			t.Errorf("%q is there in %q", value, want)
		}
	}
}

func TestAnyPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Few letters, so that values overlap and repeat; and a log that is made of them, in part.
		letters := rapid.SampledFrom([]rune("ab\n "))
		value := rapid.StringOfN(letters, 1, 12, -1)
		values := rapid.SliceOfN(value, 0, 4).Draw(t, "values")
		other := rapid.StringOfN(letters, 0, 8, -1)
		part := other
		if len(values) > 0 {
			part = rapid.OneOf(other, rapid.SampledFrom(values), rapid.Custom(func(t *rapid.T) string {
				return base64.StdEncoding.EncodeToString([]byte(other.Draw(t, "before") + rapid.SampledFrom(values).Draw(t, "value")))
			}))
		}
		log := strings.Join(rapid.SliceOfN(part, 0, 12).Draw(t, "log"), "")
		lengths := rapid.SliceOfN(rapid.IntRange(1, 20), 1, 5).Draw(t, "lengths")
		checkAnyPieces(t, values, log, lengths)
	})
}

func FuzzCensor(f *testing.F) {
	f.Add("hunter2", "rosebud", "x hunter2\nrosebud", uint8(3), uint8(5))
	f.Add("aaab", "abab", "aaaaabab\nab", uint8(1), uint8(2))
	f.Add(`{"a":"long enough"}`, "A=long enough", "\xffbG9uZyBlbm91Z2g=\n", uint8(7), uint8(1))
	f.Fuzz(func(t *testing.T, one, other, log string, length, another uint8) {
		if len(one)+len(other)+len(log) > 2000 {
			t.Skip("the check would take long")
		}
		checkAnyPieces(t, []string{one, other}, log, []int{int(length) + 1, int(another) + 1})
	})
}

// A line that has ended is there before anything comes after it, however it ends; of one that has not, all is there but what may be a value yet.
func TestNothingWaitsThatIsDecided(t *testing.T) {
	for given, want := range map[string]string{
		"compiling\n":                  "compiling\n",
		"hunter2\n":                    "****\n",
		"hunter2-rose\n":               "****-rose\n",
		"compiling ...":                "compiling ..", // a single byte may be the first of anything
		"compiling hunter2-r":          "compiling ",
		"done, hu":                     "done, ",
		"one\ntwo\nhunter2-rosebud, h": "one\ntwo\n****, ",
	} {
		t.Run(given, func(t *testing.T) {
			source, feed := io.Pipe()
			shown := New([]byte("hunter2"), []byte("hunter2-rosebud-and-a-long-line-of-other-words")).Reader(source)
			if strings.Contains(given, "bud") {
				shown = New([]byte("hunter2-rosebud")).Reader(source)
			}
			go func() {
				_, _ = io.WriteString(feed, "a first line\n"+given)
				feed.CloseWithError(errors.New("nothing more comes")) // what waits now is lost
			}()
			want := "a first line\n" + want
			got := make([]byte, len(want))
			if _, err := io.ReadFull(shown, got); err != nil || string(got) != want {
				t.Errorf("got %q, %v; want %q", got, err, want)
			}
		})
	}
}

func TestBrokenLogEndsWithoutWhatWasHeldBack(t *testing.T) {
	broken := errors.New("kubelet went away")
	source := io.MultiReader(strings.NewReader("one\nand hunter"), iotest.ErrReader(broken))
	shown, err := io.ReadAll(New([]byte("hunter2")).Reader(source))
	if string(shown) != "one\nand " || !errors.Is(err, broken) {
		t.Errorf("got %q, %v", shown, err)
	}
}

// A log without ends of lines, nearly all of which may be a value yet, takes no more memory than the value has.
func TestMemoryIsBounded(t *testing.T) {
	value := bytes.Repeat([]byte("x"), 1000)
	shown := New(append(value, 'y')).Reader(io.LimitReader(endless('x'), 1<<20)).(*reader)
	total, err := io.Copy(io.Discard, shown)
	if err != nil {
		t.Fatal(err)
	}
	if held := cap(shown.held) + shown.ready.Cap(); held > 256<<10 {
		t.Errorf("%d bytes held", held)
	}
	if want := int64(1<<20 - 1000 + len(mask)); total != want {
		t.Errorf("%d bytes shown, want %d", total, want)
	}
}

type endless byte

func (e endless) Read(target []byte) (int, error) {
	for i := range target {
		target[i] = byte(e)
	}
	return len(target), nil
}

func BenchmarkReader(b *testing.B) {
	c := New([]byte(privateKey), []byte("hunter2-hunter2"))
	log := strings.Repeat("2026-03-01T12:00:00Z compiling module number 17 of 4711 with -O2 -g hunter3\n", 10000)
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		if _, err := io.Copy(io.Discard, c.Reader(strings.NewReader(log))); err != nil {
			b.Fatal(err)
		}
	}
}
