package gearmanbridge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// maxParameterBytes bounds the parameters as the JSON a ZuulBuild is stored as, in which a control character or one of <>& takes six bytes: etcd
	// takes 1.5 MiB for the whole object.
	maxParameterBytes = 1 << 20
	// maxParameters is how many a ZuulBuild may have.
	maxParameters = 1000
)

// readParameters turns the argument of a build: request, a JSON object, into strings as the Gearman plugin did (protocol section 6): a string as it
// is, a number as it was written, true and false, null as "", and an object or array as its JSON text. The error says what is wrong with the argument.
func readParameters(argument []byte) (map[string]string, error) {
	if len(bytes.TrimSpace(argument)) == 0 {
		return nil, fmt.Errorf("the argument of the request is empty; a JSON object of parameters was expected")
	}
	if !utf8.Valid(argument) {
		return nil, fmt.Errorf("the argument of the request is not UTF-8")
	}
	decoder := json.NewDecoder(bytes.NewReader(argument))
	var values map[string]json.RawMessage
	if err := decoder.Decode(&values); err != nil {
		return nil, fmt.Errorf("the argument of the request is not a JSON object: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("the argument of the request has something after its JSON object")
	}
	if values == nil {
		return nil, fmt.Errorf("the argument of the request is null; a JSON object of parameters was expected")
	}
	if err := checkSurrogates(argument); err != nil {
		return nil, fmt.Errorf("the argument of the request cannot be told in UTF-8: %w", err)
	}
	if len(values) > maxParameters {
		return nil, fmt.Errorf("the request has %d parameters; at most %d can be kept", len(values), maxParameters)
	}
	parameters := make(map[string]string, len(values))
	for name, value := range values {
		text, err := parameterText(value)
		if err != nil {
			return nil, fmt.Errorf("parameter %q: %w", name, err)
		}
		parameters[name] = text
	}
	stored, err := json.Marshal(parameters)
	if err != nil {
		return nil, err
	}
	if len(stored) > maxParameterBytes {
		return nil, fmt.Errorf("the parameters have %d bytes as JSON; at most %d can be kept", len(stored), maxParameterBytes)
	}
	return parameters, nil
}

func parameterText(value json.RawMessage) (string, error) {
	switch value[0] {
	case '"':
		var text string
		err := json.Unmarshal(value, &text)
		return text, err
	case 'n':
		return "", nil
	case '{', '[':
		var compact bytes.Buffer
		err := json.Compact(&compact, value)
		return compact.String(), err
	default: // a number, true or false
		return string(value), nil
	}
}

// checkSurrogates refuses a \uD800 without its other half anywhere in a JSON text: no UTF-8 text holds it, and the decoder would replace it unsaid,
// by which two names could become one.
func checkSurrogates(text []byte) error {
	escape := func(at int) rune { // the code of a \uXXXX, or -1
		if at+6 > len(text) || text[at] != '\\' || text[at+1] != 'u' {
			return -1
		}
		code, err := strconv.ParseUint(string(text[at+2:at+6]), 16, 32)
		if err != nil {
			return -1
		}
		return rune(code)
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		switch r := escape(i); {
		case r < 0:
			i++ // an escape of two characters
		case !utf16.IsSurrogate(r):
			i += 5
		case utf16.DecodeRune(r, escape(i+6)) == utf8.RuneError:
			return fmt.Errorf("\\u%04x at byte %d is half a character", r, i)
		default:
			i += 11
		}
	}
	return nil
}
