package gearman

import (
	"sync"
	"time"
)

// link is one incarnation of a worker's connection: the socket, the jobs it
// brought and the questions asked on it. All of it dies together.
type link struct {
	conn *conn
	// changed tells the worker's loop that ended is not empty.
	changed func()
	done    chan struct{}
	queries statusQueries
	asking  sync.Mutex // keeps questions in the order they are sent

	mu    sync.Mutex
	jobs  map[string]*Job // unfinished, by handle
	ended []*Job          // finished, not yet seen by the loop
}

func newLink(c *conn, changed func()) *link {
	return &link{conn: c, changed: changed, done: make(chan struct{}), jobs: make(map[string]*Job)}
}

// assign makes a job of a JOB_ASSIGN_UNIQ. If the server hands out a handle
// again, the job that had it is over; it is returned as replaced.
func (l *link) assign(packet Packet) (job, replaced *Job) {
	job = &Job{
		handle:   packet.arg(0),
		Function: packet.arg(1),
		Unique:   packet.arg(2),
		Payload:  packet.Args[3],
		Assigned: time.Now(),
		link:     l,
		done:     make(chan struct{}),
		held:     true,
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	replaced = l.jobs[job.handle]
	l.jobs[job.handle] = job
	return job, replaced
}

// finished notes that the job had its finishing packet. seen says that the
// worker's loop is about to look anyway.
func (l *link) finished(job *Job, seen bool) {
	l.mu.Lock()
	if l.jobs[job.handle] == job {
		delete(l.jobs, job.handle)
	}
	l.ended = append(l.ended, job)
	l.mu.Unlock()
	if !seen {
		l.changed()
	}
}

// takeEnded returns the jobs finished since the last call.
func (l *link) takeEnded() []*Job {
	l.mu.Lock()
	defer l.mu.Unlock()
	ended := l.ended
	l.ended = nil
	return ended
}

// query sends GET_STATUS. The answer comes on the channel unless the link
// dies first.
func (l *link) query(handle string) (<-chan statusAnswer, error) {
	l.asking.Lock()
	defer l.asking.Unlock()
	answer := l.queries.expect(handle)
	return answer, l.conn.write(request(PacketGetStatus, handle))
}

// kill ends every job of the closed connection. None may be assigned any more.
func (l *link) kill() {
	close(l.done)
	l.mu.Lock()
	jobs := l.jobs
	l.jobs = nil
	l.mu.Unlock()
	for _, job := range jobs {
		job.lose()
	}
}
