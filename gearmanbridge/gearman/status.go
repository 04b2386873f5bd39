package gearman

import (
	"fmt"
	"strconv"
	"sync"
)

// JobStatus is what a server knows of a job handle.
type JobStatus struct {
	// Known is false once the job ended, and for handles never given.
	Known bool
	// Running is true while a worker has the job.
	Running bool
	// Numerator and Denominator are those of the last WORK_STATUS, 0 before
	// it. gearmand keeps their lower 32 bits.
	Numerator, Denominator int64
}

// parseJobStatus reads the arguments of STATUS_RES after the handle.
func parseJobStatus(args [][]byte) (JobStatus, error) {
	var values [4]int64
	for i := range values {
		if len(args[i]) == 0 {
			continue // geard sends no digits before the first WORK_STATUS
		}
		value, err := strconv.ParseInt(string(args[i]), 10, 64)
		if err != nil {
			return JobStatus{}, fmt.Errorf("%w: STATUS_RES with %.40q for a number", ErrProtocol, args[i])
		}
		values[i] = value
	}
	return JobStatus{Known: values[0] != 0, Running: values[1] != 0, Numerator: values[2], Denominator: values[3]}, nil
}

type statusAnswer struct {
	status JobStatus
	err    error
}

// statusQueries pairs GET_STATUS with STATUS_RES: answers for one handle come
// in the order of the questions.
type statusQueries struct {
	mu      sync.Mutex
	waiting map[string][]chan statusAnswer
}

// expect notes a question about to be sent. The answer comes on the channel.
func (q *statusQueries) expect(handle string) <-chan statusAnswer {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting == nil {
		q.waiting = make(map[string][]chan statusAnswer)
	}
	answer := make(chan statusAnswer, 1)
	q.waiting[handle] = append(q.waiting[handle], answer)
	return answer
}

// answer gives a STATUS_RES to the first who asked for its handle, if any.
func (q *statusQueries) answer(packet Packet) {
	status, err := parseJobStatus(packet.Args[1:])
	handle := packet.arg(0)
	q.mu.Lock()
	defer q.mu.Unlock()
	waiting := q.waiting[handle]
	if len(waiting) == 0 {
		return
	}
	waiting[0] <- statusAnswer{status, err}
	if len(waiting) == 1 {
		delete(q.waiting, handle)
		return
	}
	q.waiting[handle] = waiting[1:]
}
