package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"

	"github.com/go-logr/logr"
)

// TestLogHandler: an error has the same key whoever logs it.
func TestLogHandler(t *testing.T) {
	var text bytes.Buffer
	handler := logHandler(&text, slog.LevelInfo)
	for logger, write := range map[string]func(){
		"slog": func() { slog.New(handler).Error("it failed", "error", errors.New("the network is down")) },
		"logr": func() { logr.FromSlogHandler(handler).Error(errors.New("the network is down"), "it failed") },
	} {
		text.Reset()
		write()
		line := map[string]any{}
		must(t, json.Unmarshal(text.Bytes(), &line))
		if line["error"] != "the network is down" || len(line) != 4 {
			t.Errorf("%s writes %s", logger, &text)
		}
	}
}
