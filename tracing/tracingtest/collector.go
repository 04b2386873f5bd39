// Package tracingtest has a collector of traces for tests.
package tracingtest

import (
	"cmp"
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Collector takes spans as OpenTelemetry's does: OTLP over HTTP, in protobuf.
type Collector struct {
	// URL is the address to give to a tracer.
	URL string

	mu       sync.Mutex
	spans    []Span
	resource map[string]string
	header   http.Header
}

// Span is one as it was sent. Ids are hexadecimal, and those of no parent empty.
type Span struct {
	Trace, ID, Parent string
	Name              string
	Start, End        time.Time
	Attributes        map[string]string
	Events            []string // names
	Failure           string   // the message of a status that is an error
}

// Start runs a collector until the test ends. What it cannot read fails the test.
func Start(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", func(w http.ResponseWriter, r *http.Request) {
		if err := c.take(r); err != nil {
			t.Error("collector:", err)
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

func (c *Collector) take(r *http.Request) error {
	if kind := r.Header.Get("Content-Type"); kind != "application/x-protobuf" {
		return fmt.Errorf("content of type %q", kind)
	}
	content := r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(content)
		if err != nil {
			return err
		}
		content = unpacked
	}
	body, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	request := &collectorpb.ExportTraceServiceRequest{}
	if err := proto.Unmarshal(body, request); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.header = r.Header
	for _, ofResource := range request.ResourceSpans {
		c.resource = attributes(ofResource.Resource.GetAttributes())
		for _, ofScope := range ofResource.ScopeSpans {
			for _, span := range ofScope.Spans {
				c.spans = append(c.spans, read(span))
			}
		}
	}
	return nil
}

func read(span *tracepb.Span) Span {
	out := Span{
		Trace: hex.EncodeToString(span.TraceId), ID: hex.EncodeToString(span.SpanId), Parent: hex.EncodeToString(span.ParentSpanId), Name: span.Name,
		Start: time.Unix(0, int64(span.StartTimeUnixNano)), End: time.Unix(0, int64(span.EndTimeUnixNano)), Attributes: attributes(span.Attributes),
	}
	for _, event := range span.Events {
		out.Events = append(out.Events, event.Name)
	}
	if span.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		out.Failure = span.Status.GetMessage()
	}
	return out
}

func attributes(list []*commonpb.KeyValue) map[string]string {
	out := map[string]string{}
	for _, attribute := range list {
		if number, ok := attribute.Value.GetValue().(*commonpb.AnyValue_IntValue); ok {
			out[attribute.Key] = fmt.Sprint(number.IntValue)
		} else {
			out[attribute.Key] = attribute.Value.GetStringValue()
		}
	}
	return out
}

// Spans are those that have come, in the order they began in; of those that began at once the root is the first, then as they were sent.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	spans := slices.Clone(c.spans)
	slices.SortStableFunc(spans, func(a, b Span) int {
		return cmp.Or(a.Start.Compare(b.Start), min(len(a.Parent), 1)-min(len(b.Parent), 1))
	})
	return spans
}

// Header is that of the last request.
func (c *Collector) Header() http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.header
}

// Resource is what sent the last of them.
func (c *Collector) Resource() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.resource
}
