package zuulclient

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// ErrNotRegistered says that no worker ever offered the function to the
// server. Zuul then gives the build the result NOT_REGISTERED and does not try
// again.
var ErrNotRegistered = errors.New("NOT_REGISTERED")

// DefaultCancelPause is how long Zuul since 2.1.0 gives a build that is in no
// queue to report its start.
const DefaultCancelPause = time.Second

// Client launches builds as one Zuul does. It is safe for concurrent use.
type Client struct {
	// Gearman carries the builds: they end with its connection.
	Gearman *gearman.Client
	// DialAdmin opens a connection for administration commands. Zuul sends
	// them on its only connection; no server makes a difference.
	DialAdmin func(context.Context) (*gearman.Admin, error)
	Dialect   Dialect
	// Settling is how AwaitRegistered waits; zero fields mean Zuul's values.
	Settling Settling
	// CancelPause stands for DefaultCancelPause if it is not 0.
	CancelPause time.Duration

	following sync.WaitGroup
}

// Settling is how Zuul waits after a start until the workers have come back:
// until the set of functions did not change for Quiet (5 s), at most Limit
// (30 s), looking every Interval (1 s).
type Settling struct {
	Interval, Quiet, Limit time.Duration
}

// Dial connects to a Gearman server, "host:port" or "host", over TLS unless
// tlsConfig is nil.
func Dial(ctx context.Context, address string, tlsConfig *tls.Config, dialect Dialect) (*Client, error) {
	connection, err := gearman.DialClient(ctx, address, tlsConfig)
	if err != nil {
		return nil, err
	}
	return &Client{
		Gearman: connection,
		DialAdmin: func(ctx context.Context) (*gearman.Admin, error) {
			return gearman.DialAdmin(ctx, address, tlsConfig)
		},
		Dialect: dialect,
	}, nil
}

// Close ends the connection and every build on it, as a Zuul that is killed
// does.
func (c *Client) Close() error {
	err := c.Gearman.Close()
	c.following.Wait()
	return err
}

// Functions returns the names of `status` as Zuul reads them: the first word
// of each line, sorted. Servers list a name for ever, also without workers.
func (c *Client) Functions(ctx context.Context) ([]string, error) {
	admin, err := c.DialAdmin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = admin.Close() }()
	lines, err := admin.Status(ctx)
	if err != nil {
		return nil, err
	}
	names := make(map[string]bool)
	for _, line := range lines {
		if words := strings.Fields(line.Name); len(words) > 0 && words[0] != "." {
			names[words[0]] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// Registered reports whether Zuul would submit to the function. Unlike Zuul it
// asks anew each time; Zuul remembers a miss for 5 s and a hit as long as it
// is connected.
func (c *Client) Registered(ctx context.Context, function string) (bool, error) {
	names, err := c.Functions(ctx)
	return slices.Contains(names, function), err
}

// AwaitRegistered waits for the function as long as Settling says. The error
// wraps ErrNotRegistered if it does not come.
func (c *Client) AwaitRegistered(ctx context.Context, function string) error {
	settling := c.Settling.orZuul()
	ticker := time.NewTicker(settling.Interval)
	defer ticker.Stop()
	begun := time.Now()
	changed, before := begun, []string(nil)
	for {
		names, err := c.Functions(ctx)
		if err != nil {
			return err
		}
		if slices.Contains(names, function) {
			return nil
		}
		now := time.Now()
		if !slices.Equal(names, before) {
			changed, before = now, names
		}
		if now.Sub(changed) >= settling.Quiet || now.Sub(begun) >= settling.Limit {
			return notRegistered(function)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s to be registered: %w", function, context.Cause(ctx))
		}
	}
}

func (s Settling) orZuul() Settling {
	if s.Interval <= 0 {
		s.Interval = time.Second
	}
	if s.Quiet <= 0 {
		s.Quiet = 5 * time.Second
	}
	if s.Limit <= 0 {
		s.Limit = 30 * time.Second
	}
	return s
}

func notRegistered(function string) error {
	return fmt.Errorf("%w: no worker has registered %s", ErrNotRegistered, function)
}

// Request is a build to launch.
type Request struct {
	// Job is the name of the job, Node the node or class of nodes it shall
	// run on, "" for any.
	Job, Node string
	// UUID is the build's Gearman unique, "" for a new one of 32 hex digits.
	UUID string
	// Parameters are sent as JSON. ZUUL_UUID is added unless it is there, as
	// Zuul lets a parameter function change it; ZUUL_NODE is set to Node. If
	// Node is "" and ZUUL_NODE is there, it is the node.
	Parameters map[string]any
	// Payload is sent instead of Parameters unless nil, to try what no Zuul
	// sends.
	Payload []byte
	// Precedence is that of the pipeline.
	Precedence gearman.Priority
	// Unchecked leaves out the question whether the function is registered
	// (check_job_registration=false of Zuul 2.5.0).
	Unchecked bool
}

// Function returns the name of the Gearman function, build:JOB or
// build:JOB:NODE.
func (r Request) Function() string {
	if r.Node != "" {
		return "build:" + r.Job + ":" + r.Node
	}
	if node, given := r.Parameters["ZUUL_NODE"]; given {
		return fmt.Sprintf("build:%s:%v", r.Job, node)
	}
	return "build:" + r.Job
}

// NewUUID returns a random UUID as Zuul makes them: version 4, 32 lower-case
// hex digits without hyphens.
func NewUUID() string {
	var bytes [16]byte
	_, _ = rand.Read(bytes[:]) // never fails
	bytes[6] = bytes[6]&0x0F | 0x40
	bytes[8] = bytes[8]&0x3F | 0x80
	return hex.EncodeToString(bytes[:])
}

// payload returns the argument of the Gearman job.
func (r Request) payload(uuid string) ([]byte, error) {
	if r.Payload != nil {
		return r.Payload, nil
	}
	parameters := maps.Clone(r.Parameters)
	if parameters == nil {
		parameters = make(map[string]any)
	}
	if _, given := parameters["ZUUL_UUID"]; !given {
		parameters["ZUUL_UUID"] = uuid
	}
	if r.Node != "" {
		parameters["ZUUL_NODE"] = r.Node
	}
	encoded, err := asciiJSON(parameters)
	if err != nil {
		return nil, fmt.Errorf("parameters of %s: %w", r.Job, err)
	}
	return encoded, nil
}

// Submit launches a build. The error wraps ErrNotRegistered if the function is
// not registered; ctx bounds the submission only.
func (c *Client) Submit(ctx context.Context, request Request) (*Build, error) {
	uuid := request.UUID
	if uuid == "" {
		uuid = NewUUID()
	}
	function := request.Function()
	if err := gearman.ValidFunctionName(function); err != nil {
		return nil, err
	}
	payload, err := request.payload(uuid)
	if err != nil {
		return nil, err
	}
	if !request.Unchecked {
		registered, err := c.Registered(ctx, function)
		if err != nil {
			return nil, err
		}
		if !registered {
			return nil, notRegistered(function)
		}
	}
	submitted := time.Now()
	task, err := c.Gearman.Submit(ctx, request.Precedence, function, uuid, payload)
	if err != nil {
		return nil, err
	}
	build := newBuild(c, task, State{
		UUID:      uuid,
		Job:       request.Job,
		Node:      request.Node,
		Function:  function,
		Handle:    task.Handle,
		Submitted: submitted,
	})
	c.following.Go(build.follow)
	return build, nil
}
