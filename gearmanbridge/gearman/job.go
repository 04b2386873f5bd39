package gearman

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"
)

var (
	// ErrHandleLost says that the connection which brought the job is gone,
	// and the job's handle with it. Nothing was sent, or its arrival is
	// unknown.
	ErrHandleLost = errors.New("gearman: the job's handle was lost with its connection")
	// ErrFinished says that the job had its finishing packet before. Nothing
	// was sent.
	ErrFinished = errors.New("gearman: the job is finished already")
)

// maxStatusValue is the largest WORK_STATUS number every server takes:
// gearmand closes the connection at 12 digits, 10 are known to be safe.
const maxStatusValue = 9_999_999_999

// Job is a job as it was assigned on one connection of a Worker. Its methods
// send to that connection only; they may block while the server does not
// read, but not for longer than the connection lives.
type Job struct {
	// Function is the name the job was submitted under.
	Function string
	// Unique is the submitter's name for the job, "" if it gave none. Zuul
	// sends the build's UUID.
	Unique string
	// Payload is the argument of the job, byte for byte.
	Payload []byte
	// Assigned is when it was read from the connection.
	Assigned time.Time
	// LogValues are keys and values for the worker's lines about the job. Worker.Assigned may set them; else it is Function and Unique.
	LogValues []any

	handle string
	link   *link
	done   chan struct{}

	mu   sync.Mutex // orders the packets of the job
	err  error      // why nothing can be sent any more; nil while the job runs
	held bool       // packets wait for those the worker's loop is about to send
}

// Handle returns the server's name for the job, for logs. Servers reuse
// handles after a restart, so it must not be stored as the job's identity.
func (j *Job) Handle() string { return j.handle }

func (j *Job) logValues() []any {
	if j.LogValues != nil {
		return j.LogValues
	}
	return []any{"function", j.Function, "unique", j.Unique}
}

// Done is closed when the job was finished or its connection was lost.
func (j *Job) Done() <-chan struct{} { return j.done }

// Err is nil while the job runs, then ErrFinished or ErrHandleLost.
func (j *Job) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// Data sends WORK_DATA. Zuul takes the newest one as the whole truth.
func (j *Job) Data(data []byte) error {
	return j.send(Packet{Type: PacketWorkData, Args: [][]byte{[]byte(j.handle), data}}, false)
}

// Status sends WORK_STATUS, numerator of denominator. Both must be between
// -9,999,999,999 and 9,999,999,999: larger numbers make gearmand close the
// connection.
func (j *Job) Status(numerator, denominator int64) error {
	for _, value := range []int64{numerator, denominator} {
		if value > maxStatusValue || value < -maxStatusValue {
			return fmt.Errorf("gearman: WORK_STATUS number %d has more than 10 digits", value)
		}
	}
	return j.send(request(PacketWorkStatus, j.handle,
		strconv.FormatInt(numerator, 10), strconv.FormatInt(denominator, 10)), false)
}

// Complete sends WORK_COMPLETE with data, which may be empty, and finishes
// the job.
func (j *Job) Complete(data []byte) error {
	return j.send(Packet{Type: PacketWorkComplete, Args: [][]byte{[]byte(j.handle), data}}, true)
}

// Fail sends WORK_FAIL and finishes the job.
func (j *Job) Fail() error {
	return j.send(request(PacketWorkFail, j.handle), true)
}

// send writes the packet if the job runs. The job ends with a finishing
// packet and with a failed write, after which its connection is closed.
func (j *Job) send(packet Packet, finishing bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	if j.held {
		j.link.conn.hold(packet)
	} else if err := j.link.conn.write(packet); err != nil {
		j.end(ErrHandleLost)
		return fmt.Errorf("%w: %v", ErrHandleLost, err)
	}
	if finishing {
		j.end(ErrFinished)
		j.link.finished(j, j.held)
	}
	return nil
}

// letGo ends the holding back of packets, with which a job begins.
func (j *Job) letGo() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.held = false
}

// lose ends the job and reports true if it ran.
func (j *Job) lose() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return false
	}
	j.end(ErrHandleLost)
	return true
}

// end needs j.mu.
func (j *Job) end(reason error) {
	j.err = reason
	close(j.done)
}

// Query asks the server for the status of the job, with GET_STATUS on the
// job's own connection. If the server does not know the job and Err is still
// nil afterwards, nobody waits for the job: geard forgets a job with its
// client, and both servers when it was finished. Query must not be called from
// a callback of the Worker.
func (j *Job) Query(ctx context.Context) (JobStatus, error) {
	if err := j.Err(); err != nil {
		return JobStatus{}, err
	}
	answer, err := j.link.query(j.handle)
	if err != nil {
		return JobStatus{}, fmt.Errorf("%w: %v", ErrHandleLost, err)
	}
	select {
	case got := <-answer:
		return got.status, got.err
	case <-j.link.done:
		return JobStatus{}, ErrHandleLost
	case <-ctx.Done():
		return JobStatus{}, fmt.Errorf("gearman: status of %s: %w", j.handle, context.Cause(ctx))
	}
}
