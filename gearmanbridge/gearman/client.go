package gearman

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
)

// ErrConnectionLost is wrapped by the errors of calls and tasks whose
// connection ended.
var ErrConnectionLost = errors.New("gearman: connection lost")

// Priority is the queue of a submitted job.
type Priority int

// The priorities. geard starts jobs strictly by priority, gearmand by
// priority only within a function.
const (
	PriorityNormal Priority = iota
	PriorityHigh
	PriorityLow
)

func (p Priority) packetType() PacketType {
	switch p {
	case PriorityHigh:
		return PacketSubmitJobHigh
	case PriorityLow:
		return PacketSubmitJobLow
	default:
		return PacketSubmitJob
	}
}

// ServerError is an ERROR packet.
type ServerError struct {
	Code, Text string
}

func (e *ServerError) Error() string {
	return fmt.Sprintf("gearman: server error %s: %s", e.Code, e.Text)
}

// Client submits jobs and follows them on one connection. It does not
// reconnect: servers forget a client's jobs with its connection.
type Client struct {
	conn    *conn
	queries statusQueries
	done    chan struct{}

	sending sync.Mutex // keeps questions in the order they are sent
	mu      sync.Mutex
	pending []*Task            // awaiting JOB_CREATED, in the order submitted
	tasks   map[string][]*Task // created and not ended, by handle
	err     error              // why the connection ended
}

// DialClient connects to address, "host:port" or "host", over TLS unless
// tlsConfig is nil. ctx bounds connecting only.
func DialClient(ctx context.Context, address string, tlsConfig *tls.Config) (*Client, error) {
	connection, err := dial(ctx, address, tlsConfig, 0)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: connection, done: make(chan struct{}), tasks: make(map[string][]*Task)}
	go c.read()
	return c, nil
}

// Close ends the connection and every task on it.
func (c *Client) Close() error {
	err := c.conn.close()
	<-c.done
	return err
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Submit submits a job of the function and waits until the server has queued
// it. unique may be "". A *ServerError says that the server refused.
//
// If ctx is done first the job may still be queued, with nobody to follow it.
func (c *Client) Submit(ctx context.Context, priority Priority, function, unique string, payload []byte) (*Task, error) {
	if strings.Contains(function+unique, "\x00") {
		return nil, fmt.Errorf("gearman: function %q or unique %q has a NUL", function, unique)
	}
	task := newTask(function, unique)
	packet := request(priority.packetType(), function, unique)
	packet.Args = append(packet.Args, payload)
	if err := c.submit(task, packet); err != nil {
		return nil, err
	}
	select {
	case <-task.created:
		return task, task.refused
	case <-c.done:
		select { // it may have been created in the same moment
		case <-task.created:
			return task, task.refused
		default:
			return nil, c.lostError()
		}
	case <-ctx.Done():
		return nil, fmt.Errorf("gearman: submit %s: %w", function, context.Cause(ctx))
	}
}

func (c *Client) submit(task *Task, packet Packet) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.mu.Lock()
	c.pending = append(c.pending, task)
	c.mu.Unlock()
	if err := c.conn.write(packet); err != nil {
		return fmt.Errorf("%w: %v", ErrConnectionLost, err)
	}
	return nil
}

// maxHandle is the longest handle, in bytes, that gearmand answers for.
const maxHandle = 63

// Status asks the server for the status of a job by its handle.
func (c *Client) Status(ctx context.Context, handle string) (JobStatus, error) {
	if len(handle) > maxHandle || strings.Contains(handle, "\x00") {
		return JobStatus{}, fmt.Errorf("gearman: %.70q is no job handle", handle)
	}
	c.sending.Lock()
	answer := c.queries.expect(handle)
	err := c.conn.write(request(PacketGetStatus, handle))
	c.sending.Unlock()
	if err != nil {
		return JobStatus{}, fmt.Errorf("%w: %v", ErrConnectionLost, err)
	}
	select {
	case got := <-answer:
		return got.status, got.err
	case <-c.done:
		return JobStatus{}, c.lostError()
	case <-ctx.Done():
		return JobStatus{}, fmt.Errorf("gearman: status of %s: %w", handle, context.Cause(ctx))
	}
}

func (c *Client) lostError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read takes packets until the connection ends, then ends every task.
func (c *Client) read() {
	var err error
	for err == nil {
		var packet Packet
		if packet, err = c.conn.readPacket(); err == nil {
			err = c.received(packet)
		}
	}
	_ = c.conn.close()
	if errors.Is(err, io.EOF) {
		err = errors.New("closed by the server")
	}
	c.mu.Lock()
	c.err = fmt.Errorf("%w: %v", ErrConnectionLost, err)
	tasks := c.tasks
	c.tasks, c.pending = nil, nil
	c.mu.Unlock()
	for _, same := range tasks {
		for _, task := range same {
			task.lose(c.err)
		}
	}
	close(c.done)
}

func (c *Client) received(packet Packet) error {
	switch packet.Type {
	case PacketJobCreated:
		return c.created(packet.arg(0), nil)
	case PacketError:
		// Servers send a client an ERROR for a job they refuse only.
		return c.created("", &ServerError{Code: packet.arg(0), Text: packet.arg(1)})
	case PacketStatusRes:
		c.queries.answer(packet)
	case PacketWorkData, PacketWorkWarning, PacketWorkStatus,
		PacketWorkComplete, PacketWorkFail, PacketWorkException:
		c.event(packet)
	default: // nothing a client asked for
	}
	return nil
}

// created gives the answer to a submission to the task that waits longest.
func (c *Client) created(handle string, refused error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		return fmt.Errorf("%w: answer to a job that was not submitted", ErrProtocol)
	}
	task := c.pending[0]
	c.pending = c.pending[1:]
	task.Handle, task.refused = handle, refused
	if refused == nil {
		c.tasks[handle] = append(c.tasks[handle], task)
	}
	close(task.created)
	return nil
}

// event hands a WORK_* packet to every task of its handle: gearmand gives
// equal jobs one handle.
func (c *Client) event(packet Packet) {
	event := newEvent(packet)
	handle := packet.arg(0)
	c.mu.Lock()
	tasks := c.tasks[handle]
	if event.Final() {
		delete(c.tasks, handle)
	}
	c.mu.Unlock()
	for _, task := range tasks {
		task.add(event)
	}
}
