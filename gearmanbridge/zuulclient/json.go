package zuulclient

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf16"
	"unicode/utf8"
)

// parseObject reads data as Python's json.loads would, which must give an
// object. Numbers become json.Number.
func parseObject(data []byte) (map[string]any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not JSON: more than one value")
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New("JSON but not an object")
	}
	return object, nil
}

// truthy is Python's bool() of a JSON value.
func truthy(value any) bool {
	switch value := value.(type) {
	case nil:
		return false
	case bool:
		return value
	case string:
		return value != ""
	case json.Number:
		number, err := value.Float64()
		return err != nil || number != 0
	case []any:
		return len(value) > 0
	case map[string]any:
		return len(value) > 0
	}
	return true
}

// asciiJSON encodes as Python's json.dumps does: other characters than ASCII
// are escaped, those of HTML are not.
func asciiJSON(value any) ([]byte, error) {
	var encoded bytes.Buffer
	encoder := json.NewEncoder(&encoded)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	var ascii []byte
	for _, r := range string(bytes.TrimSuffix(encoded.Bytes(), []byte("\n"))) {
		switch {
		case r < utf8.RuneSelf:
			ascii = append(ascii, byte(r))
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			ascii = fmt.Appendf(ascii, `\u%04x\u%04x`, high, low)
		default:
			ascii = fmt.Appendf(ascii, `\u%04x`, r)
		}
	}
	return ascii, nil
}

// mustJSON is asciiJSON for values that came from JSON.
func mustJSON(value any) []byte {
	encoded, err := asciiJSON(value)
	if err != nil {
		panic(err)
	}
	return encoded
}
