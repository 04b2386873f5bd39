// Package description makes the description of a build harmless. Zuul sends it as HTML with set_description (protocol section 3); change titles and
// addresses are in it, so it is as untrusted as a change. It is sanitised before it is stored, and once more before it is shown, because whoever may
// write a status may have written it.
package description

import (
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/microcosm-cc/bluemonday"
	"golang.org/x/net/html"
)

// MaxLength of a sanitised description, in bytes. The schema of ZuulBuild has the same.
const MaxLength = 16 * 1024

// shortened stands where a description was cut.
const shortened = "…"

// maxDepth of elements in each other; a tag beyond is left out. Zuul's descriptions have four.
const maxDepth = 64

// elements are those of Zuul's own descriptions (a, b, br, li, p, ul) and what else people write in a few sentences. None of them loads anything,
// and href is the only attribute any may have.
var elements = []string{"b", "br", "code", "em", "i", "li", "ol", "p", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"}

var policy = newPolicy()

func newPolicy() *bluemonday.Policy {
	p := bluemonday.NewPolicy()
	p.AllowElements(elements...)
	p.AllowAttrs("href").OnElements("a")
	p.RequireParseableURLs(true)
	for _, scheme := range []string{"http", "https"} {
		// http:x is relative to the page, and http://bank@elsewhere looks like what it is not.
		p.AllowURLSchemeWithCustomPolicy(scheme, func(address *url.URL) bool { return address.Host != "" && address.User == nil })
	}
	p.RequireNoFollowOnLinks(true)
	p.RequireNoReferrerOnLinks(true)
	return p
}

// Sanitize returns what is harmless of some HTML: UTF-8 of at most MaxLength bytes, in which every element is closed, to be put into any element that
// may hold a paragraph. Anything is taken, and in a time that does not grow with it: what is too long is cut before it is sanitised, so that
// no tag is left open by the cut.
func Sanitize(text string) string {
	for limit := MaxLength; ; limit -= limit/8 + 1 {
		kept := strings.ToValidUTF8(prefix(text, limit), "\uFFFD")
		sane := balance(policy.Sanitize(strings.Map(seen, kept)))
		if limit < len(text) {
			sane += shortened
		}
		// Escapes and the attributes of links make it longer than it was.
		if len(sane) <= MaxLength {
			return sane
		}
	}
}

// prefix of at most so many bytes, that does not end within a character.
func prefix(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}

// seen drops the characters that cannot be seen, or make text look like other text: control characters and overrides of the writing direction.
func seen(char rune) rune {
	if char != '\t' && char != '\n' && unicode.IsControl(char) || unicode.Is(unicode.Bidi_Control, char) {
		return -1
	}
	return char
}

// balance closes what is open and leaves out what closes nothing, so that a description cannot reach beyond the element it is shown in: an <a> left
// open would make a link of the rest of the page. The policy looks at each tag by itself.
func balance(text string) string {
	var out strings.Builder
	var open []string
	closeTo := func(depth int) {
		for len(open) > depth {
			out.WriteString("</" + open[len(open)-1] + ">")
			open = open[:len(open)-1]
		}
	}
	tokens := html.NewTokenizer(strings.NewReader(text))
	for tokens.Next() != html.ErrorToken { // the end
		token := tokens.Token()
		switch token.Type {
		case html.TextToken:
			token.Data = strings.Map(seen, token.Data) // numeric references gave them back
			out.WriteString(token.String())
		case html.StartTagToken, html.SelfClosingTagToken:
			token.Type = html.StartTagToken // <b/> opens as <b> does
			switch {
			case token.Data == "br":
				out.WriteString(token.String())
			case len(open) < maxDepth:
				out.WriteString(token.String())
				open = append(open, token.Data)
			}
		case html.EndTagToken:
			for depth := len(open) - 1; depth >= 0; depth-- {
				if open[depth] == token.Data {
					closeTo(depth)
					break
				}
			}
		default: // the policy lets nothing else through
		}
	}
	closeTo(0)
	return out.String()
}
