package description

import (
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"
)

func TestSanitize(t *testing.T) {
	const link = ` rel="nofollow noreferrer"`
	tests := map[string]struct{ text, want string }{
		"nothing": {"", ""},
		"text":    {"a < b & \"c\"", "a &lt; b &amp; &#34;c&#34;"},
		"of Zuul": {
			"<p>\n  Triggered by change:\n    <a href=\"https://review.example.org/1234\">1234,5</a><br/>\n  Branch: <b>master</b><br/>\n</p><p>All:\n<ul><li>\n  unit: None\n</li></ul></p>",
			"<p>\n  Triggered by change:\n    <a href=\"https://review.example.org/1234\"" + link +
				">1234,5</a><br>\n  Branch: <b>master</b><br>\n</p><p>All:\n<ul><li>\n  unit: None\n</li></ul></p>",
		},
		"its stray end of a link": {"<p>Triggered by reference:\n refs/heads/master</a><br/></p>", "<p>Triggered by reference:\n refs/heads/master<br></p>"},
		"table":                   {"<table><tr><td colspan=9>x</table>", "<table><tr><td>x</td></tr></table>"},
		"capitals":                {"<B>x</B><A HREF=HTTP://x/>y</A>", `<b>x</b><a href="http://x/"` + link + `>y</a>`},

		"script":                    {"a<script>alert(1)</script>b", "ab"},
		"script left open":          {"a<script>alert(1)", "a"},
		"script in script":          {"<scr<script>ipt>alert(1)</script>", "ipt&gt;alert(1)"},
		"style":                     {"<style>*{display:none}</style>a<b style=color:red>b</b>", "a<b>b</b>"},
		"event handlers":            {`<b onclick="x()">a</b><img src=x onerror=x()><svg onload=x()>b<p/onmouseover=x()>c`, "<b>a</b>b<p>c</p>"},
		"frames":                    {`<iframe src="//x"></iframe><object data=x></object><embed src=x>a`, "a"},
		"form":                      {`<form action="http://x"><input name=a><button>b</button></form>`, "b"},
		"base and meta":             {`<base href=//x><meta http-equiv=refresh content=0><link rel=stylesheet href=//x>a`, "a"},
		"clobbering":                {`<a id=log name=log class=badge href="http://x">a</a>`, `<a href="http://x"` + link + `>a</a>`},
		"target and rel":            {`<a target=_blank rel=opener href="http://x">a</a>`, `<a href="http://x"` + link + `>a</a>`},
		"javascript":                {`<a href="javascript:x()">a</a>`, "a"},
		"javascript in disguise":    {"<a href=\" java\tscript&colon;x()\">a</a><a href='&#106;avascript:x()'>b</a><a href=\"\x01javascript:x()\">c</a>", "abc"},
		"data, file, vbscript":      {`<a href="data:text/html,x">a</a><a href="file:///x">b</a><a href="vbscript:x">c</a>`, "abc"},
		"relative":                  {`<a href="/x">a</a><a href="//x/y">b</a><a href="x">c</a><a href="?x">d</a><a href="#x">e</a><a href="http:x">f</a><a href="http:/x">g</a>`, "abcdefg"},
		"a user's name in a link":   {`<a href="https://bank.example@evil.example">a</a>`, "a"},
		"quotes in a link":          {`<a href='http://x/"onclick="x()'>a</a>`, `<a href="http://x/%22onclick=%22x%28%29"` + link + `>a</a>`},
		"comment":                   {"a<!-- x --><!doctype html><![CDATA[x]]><?php ?>b", "ab"},
		"comment left open":         {"a<!-- <b>x", "a"},
		"raw text":                  {"<textarea><b></textarea><xmp><b></xmp><title>x</title><noscript>x</noscript>", "&lt;b&gt;&lt;b&gt;"},
		"plain text":                {"<plaintext><b>x</plaintext>", "&lt;b&gt;x&lt;/plaintext&gt;"},
		"foreign content":           {"<svg><style><a title=\"</style><img src=x onerror=x()>\">", "&#34;&gt;"},
		"left open":                 {`<ul><li><a href="http://x"><b>a`, `<ul><li><a href="http://x"` + link + `><b>a</b></a></li></ul>`},
		"crossed":                   {"<b><i>a</b>b</i>", "<b><i>a</i></b>b"},
		"ends of nothing":           {"</b></p></ul></div></main></br>a", "a"},
		"a link in one that is not": {`<a><a href="http://x">a</a>b</a>`, `<a href="http://x"` + link + `>ab</a>`},
		"closing itself":            {"<b/>a", "<b>a</b>"},
		"a tag cut off":             {"a<b", "a"},
		"a link cut off":            {`a<a href="http://x`, "a"},
		"NUL and controls":          {"a\x00<b\x00>b\x1b[31m\x7f\u0085\r\n\tc", "a<b>b[31m\n\tc</b>"},
		"controls by number":        {"a&#0;&#1;&#x202e;&#x85;b", "a\uFFFD…b"},
		"writing direction":         {"a\u202e\u2066b", "ab"},
		"not UTF-8":                 {"a\xff\xc3(", "a\uFFFD("},
		"half an entity":            {"&am &lt", "&amp;am &lt;"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Sanitize(test.text); got != test.want {
				t.Errorf("%q became\n%q, want\n%q", test.text, got, test.want)
			}
			if got := Sanitize(test.want); got != test.want { // the pages sanitise what was sanitised
				t.Errorf("%q became\n%q the second time", test.want, got)
			}
			check(t, test.text)
		})
	}
}

// TestSanitizeBounds: whatever the size, it ends soon, with something bounded and whole.
func TestSanitizeBounds(t *testing.T) {
	const size = 5 << 20
	for name, piece := range map[string]string{
		"text": "word ", "quotes": `"`, "angles": "<", "ampersands": "&", "elements": "<b>", "ends": "<b></i>", "links": `<a href=http://x>`,
		"long links": `<a href="http://x/?` + strings.Repeat(`"&`, 1000) + `">x</a>`, "tables": "<table><tr><td>", "lists": "<ul><li>x", "comments": "<!--",
		"attributes": "<b a=1 ", "scripts": "<script>", "three bytes": "€", "no UTF-8": "\x80", "NUL": "\x00", "entities": "&#34;", "objects": "</object><object>",
	} {
		t.Run(name, func(t *testing.T) {
			begun := time.Now()
			check(t, strings.Repeat(piece, size/len(piece)))
			check(t, strings.Repeat(piece, MaxLength/len(piece)))
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	if got := Sanitize(strings.Repeat("a", MaxLength)); len(got) != MaxLength {
		t.Errorf("%d bytes left of the longest that is allowed", len(got))
	}
	if got := Sanitize("<p>" + strings.Repeat("a ", MaxLength)); !strings.HasSuffix(got, " </p>…") && !strings.HasSuffix(got, "a</p>…") || len(got) < MaxLength*3/4 {
		t.Errorf("a text that was cut has %d bytes and ends with %q", len(got), got[len(got)-20:])
	}
}

func FuzzSanitize(f *testing.F) {
	for _, text := range []string{
		`<p>by <a href="https://x/1">1,2</a><br/><b>master</b></p><ul><li>x`, `<a><a href="http://x">`, "<table><a href=http://x><tr><td></a>",
		"<b><td><b><tr></b>", "<p><b><p></b>", "<scr<script>ipt>", "<a href='javascript:x'>", "<table><table><ul><table></ul>", "&#x202e;\x00", "</p></div>",
	} {
		f.Add(text)
	}
	f.Fuzz(check)
}

// check holds for everything: it is what the pages rely on.
func check(t *testing.T, text string) {
	t.Helper()
	sane := Sanitize(text)
	if len(sane) > MaxLength || !utf8.ValidString(sane) {
		t.Errorf("%d bytes, valid UTF-8: %v", len(sane), utf8.ValidString(sane))
	}
	if at := strings.IndexFunc(sane, func(char rune) bool { return char != '\n' && char != '\t' && unicode.IsControl(char) }); at >= 0 {
		t.Errorf("%U at byte %d", sane[at], at)
	}
	document, err := html.Parse(strings.NewReader("<!doctype html><html><head></head><body><main><div>" + sane + "</div><p>after</p></main></body></html>"))
	if err != nil {
		t.Fatal(err)
	}
	// What a browser makes of the page: the description is in its <div>, and what comes after is as it was.
	body := document.LastChild.LastChild
	main := body.FirstChild
	if main == nil || main != body.LastChild || main.Data != "main" {
		t.Fatalf("%q reaches beyond the page's <main>", sane)
	}
	box, after := main.FirstChild, main.LastChild
	if box.Data != "div" || box.NextSibling != after || after.Data != "p" || after.FirstChild == nil || after.FirstChild.Data != "after" {
		t.Fatalf("%q reaches beyond the element it is in", sane)
	}
	for node := range box.Descendants() {
		if node.Type == html.TextNode {
			continue
		}
		if node.Type != html.ElementNode || node.Data != "a" && !strings.Contains(" "+strings.Join(elements, " ")+" ", " "+node.Data+" ") {
			t.Errorf("node %q came through", node.Data)
		}
		for _, attribute := range node.Attr {
			switch {
			case node.Data == "a" && attribute.Key == "href" && (strings.HasPrefix(attribute.Val, "http://") || strings.HasPrefix(attribute.Val, "https://")):
			case node.Data == "a" && attribute.Key == "rel" && attribute.Val == "nofollow noreferrer":
			default:
				t.Errorf("attribute %s=%q of %s came through", attribute.Key, attribute.Val, node.Data)
			}
		}
	}
}
