// Package tracing makes an OpenTelemetry trace of each build, from the assignment of its Gearman job to the report of its end.
//
// The trace is made when the end has been reported, and all at once, of the times that the ZuulBuild keeps. Nothing is carried along while the build
// runs: the bridge and the controllers meet only in objects, both may be restarted meanwhile, and the replica that reports a build need not be the one
// that took it. For the same reason ids are not drawn by lot: that of the trace is the UID of the ZuulBuild, and those of its spans follow from that and
// from their names. So a report that is sent once more tells the same trace once more, whichever replica sends it, and who knows a build knows its trace.
//
// The price is that a build whose end nobody is told has no trace: one that was made by hand, or abandoned.
package tracing

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// flushTimeout bounds how long a collector that does not answer holds up the end of the process.
	flushTimeout = 5 * time.Second
	// maxText bounds the texts of a trace, in characters: whoever sends a request says what project it is of.
	maxText = 1024
)

// Tracer sends the traces of builds to a collector, beside everything else: what the collector does not take is dropped after a while, and what would not
// fit into a queue of 2048 spans (OTEL_BSP_MAX_QUEUE_SIZE) at once. nil makes no traces.
type Tracer struct {
	provider     *sdktrace.TracerProvider
	tracer       trace.Tracer
	logger       *slog.Logger
	flushTimeout time.Duration
}

// New gives a tracer for the collector at endpoint, the address (http or https) to which OTLP's /v1/traces is added. Where it is empty,
// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT names the collector, and where neither does, the tracer is nil. The other
// variables of OTEL_EXPORTER_OTLP_* say how it is reached. The error says what in all this cannot be. There should be one tracer in a process, since
// OpenTelemetry tells its errors to one handler.
func New(ctx context.Context, endpoint, version string, logger *slog.Logger) (*Tracer, error) {
	var options []otlptracehttp.Option
	switch {
	case endpoint != "":
		address, err := parseEndpoint(endpoint)
		if err != nil {
			return nil, fmt.Errorf("--trace-endpoint: %w", err)
		}
		options = append(options, otlptracehttp.WithEndpointURL(address.JoinPath("v1/traces").String()))
	case os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "":
		return nil, nil
	}
	warnings := rate.Sometimes{Interval: time.Minute}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		warnings.Do(func() { logger.Warn("Traces of builds are lost: the collector does not take them", "error", err) })
	}))
	otel.SetLogger(logr.FromSlogHandler(logger.Handler()))
	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("traces, by --trace-endpoint and OTEL_EXPORTER_OTLP_*: %w", err)
	}
	ours, err := resource.New(ctx, resource.WithAttributes(semconv.ServiceName("zuulbuild"), semconv.ServiceVersion(version)),
		resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	limits := sdktrace.NewSpanLimits()
	if limits.AttributeValueLengthLimit < 0 {
		limits.AttributeValueLengthLimit = maxText
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithResource(ours),
		sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithIDGenerator(givenIDs{}),
		// A sampler that goes by the trace id finds six fixed bits in a UID where it looks for chance, and would take all or none.
		sdktrace.WithSampler(sdktrace.AlwaysSample()),
	)
	return &Tracer{provider: provider, tracer: provider.Tracer("zuulbuild.dev/zuulbuild"), logger: logger, flushTimeout: flushTimeout}, nil
}

// CheckEndpoint is nil for what New takes as an endpoint.
func CheckEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	_, err := parseEndpoint(endpoint)
	return err
}

func parseEndpoint(endpoint string) (*url.URL, error) {
	address, err := url.Parse(endpoint)
	if err != nil || address.Host == "" || (address.Scheme != "http" && address.Scheme != "https") {
		return nil, fmt.Errorf("an address such as http://collector.example.org:4318 was expected, not %q", endpoint)
	}
	// One that does not exist would come out with the first trace only.
	if port, err := strconv.ParseUint(cmp.Or(address.Port(), "1"), 10, 16); err != nil || port == 0 {
		return nil, fmt.Errorf("a port from 1 to 65535 was expected, not %q", address.Port())
	}
	return address, nil
}

// Reported makes the trace of a build whose end was reported. It never waits.
func (t *Tracer) Reported(r Report) {
	if t == nil {
		return
	}
	id := traceID(r.Build.UID)
	spans := spansOf(r)
	ctx, root := t.start(context.Background(), id, spans[0], trace.WithSpanKind(trace.SpanKindConsumer))
	for _, part := range spans[1:] {
		_, span := t.start(ctx, id, part)
		span.End(trace.WithTimestamp(part.end))
	}
	root.End(trace.WithTimestamp(spans[0].end))
}

func (t *Tracer) start(ctx context.Context, id trace.TraceID, of span, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	ctx = context.WithValue(ctx, givenIDs{}, spanIDs{id, spanID(id, of.name)})
	options = append(options, trace.WithTimestamp(of.start), trace.WithAttributes(of.attributes...))
	ctx, span := t.tracer.Start(ctx, of.name, options...)
	for _, event := range of.events {
		span.AddEvent(event.name, trace.WithTimestamp(event.at), trace.WithAttributes(event.attributes...))
	}
	if of.failure != "" {
		span.SetStatus(codes.Error, of.failure)
	}
	return ctx, span
}

// Close sends what is not sent yet, for some seconds at most, whether ctx is done or not.
func (t *Tracer) Close(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.flushTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.logger.Warn("The last traces of builds could not be sent", "error", err)
	}
}

// traceID is the UID of a ZuulBuild, which has as many bits.
func traceID(uid types.UID) trace.TraceID {
	id, err := trace.TraceIDFromHex(strings.ReplaceAll(string(uid), "-", ""))
	if err != nil { // no API server gives such a UID
		sum := sha256.Sum256([]byte(uid))
		copy(id[:], sum[:])
	}
	return id
}

// spanID is that of a span in a trace. No two spans of a trace have the same name.
func spanID(of trace.TraceID, name string) (id trace.SpanID) {
	sum := sha256.Sum256(append(of[:], name...))
	copy(id[:], sum[:])
	return id
}

// givenIDs has a span get the ids that its context holds, under this type as key.
type givenIDs struct{}

type spanIDs struct {
	trace trace.TraceID
	span  trace.SpanID
}

// NewIDs implements sdktrace.IDGenerator.
func (givenIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	ids := ctx.Value(givenIDs{}).(spanIDs)
	return ids.trace, ids.span
}

// NewSpanID implements sdktrace.IDGenerator.
func (givenIDs) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	return ctx.Value(givenIDs{}).(spanIDs).span
}
