package gearman

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrUnknownJob says that the server knows no such job or, on geard, that it
// runs already.
var ErrUnknownJob = errors.New("gearman: unknown job")

// adminTimeout bounds a command whose context has no deadline: geard gives no
// answer to what it does not know.
const adminTimeout = 10 * time.Second

// maxAdminAnswer bounds the answer to a command in bytes.
const maxAdminAnswer = 64 << 20

// Admin asks a server about itself, with the text administration protocol for
// the most part, on a connection of its own.
// After a command failed halfway all others fail: the rest of its answer may
// still come.
type Admin struct {
	mu     sync.Mutex
	conn   *conn
	broken error
}

// DialAdmin connects to address, "host:port" or "host", over TLS unless
// tlsConfig is nil.
func DialAdmin(ctx context.Context, address string, tlsConfig *tls.Config) (*Admin, error) {
	connection, err := dial(ctx, address, tlsConfig, 0)
	if err != nil {
		return nil, err
	}
	return &Admin{conn: connection}, nil
}

// Close ends the connection.
func (a *Admin) Close() error { return a.conn.close() }

// FunctionStatus is a line of `status`.
type FunctionStatus struct {
	Name string
	// Queued counts the jobs that wait, Running those a worker has.
	Queued, Running int
	// Workers counts registrations: on gearmand a worker that registered the
	// function twice counts twice.
	Workers int
}

// Status lists the functions the server has heard of.
func (a *Admin) Status(ctx context.Context) ([]FunctionStatus, error) {
	return listOf(ctx, a, "status", func(line string) (FunctionStatus, error) {
		name, numbers, err := splitNumbers(line, 3)
		if err != nil {
			return FunctionStatus{}, err
		}
		// The server's first number counts running jobs too.
		return FunctionStatus{Name: name, Queued: max(numbers[0]-numbers[1], 0), Running: numbers[1], Workers: numbers[2]}, nil
	})
}

// WorkerInfo is a line of `workers`. Connections that are no workers are
// listed too, without functions.
type WorkerInfo struct {
	FileDescriptor int
	Address        string
	ClientID       string // "-" if it gave none
	Functions      []string
}

// Workers lists the connections of the server.
func (a *Admin) Workers(ctx context.Context) ([]WorkerInfo, error) {
	return listOf(ctx, a, "workers", func(line string) (WorkerInfo, error) {
		number, rest, _ := strings.Cut(line, " ")
		address, rest, _ := strings.Cut(rest, " ") // may hold colons
		clientID, functions, found := strings.Cut(rest, " :")
		descriptor, err := strconv.Atoi(number)
		if !found || err != nil {
			return WorkerInfo{}, fmt.Errorf("%w: line %q", ErrProtocol, line)
		}
		return WorkerInfo{descriptor, address, clientID, strings.Fields(functions)}, nil
	})
}

// JobInfo is a line of `show jobs`.
type JobInfo struct {
	Handle  string
	Retries int // how often its worker was lost
	// Ignored means that the job was cancelled, or that it had clients and
	// the last of them left. gearmand drops such a job when it would assign
	// it, also if another client asked for it meanwhile, who is then never
	// answered. A background job never had a client and is not ignored.
	Ignored bool
}

// ShowJobs lists the jobs, queued and running. Only gearmand knows it.
func (a *Admin) ShowJobs(ctx context.Context) ([]JobInfo, error) {
	return listOf(ctx, a, "show jobs", func(line string) (JobInfo, error) {
		handle, numbers, err := splitNumbers(line, 3)
		if err != nil {
			return JobInfo{}, err
		}
		return JobInfo{Handle: handle, Retries: numbers[0], Ignored: numbers[1] != 0}, nil
	})
}

// probeHandle is a job handle that no server gives.
const probeHandle = "admin-probe"

// Behaviour tells which program the server is. gearmand answers ECHO_REQ, and
// in the order asked; geard leaves it out and answers the GET_STATUS sent
// behind it (protocol section 5).
func (a *Admin) Behaviour(ctx context.Context) (Behaviour, error) {
	behaviour := Geard
	ask := func() error {
		return a.conn.write(request(PacketEchoReq, probeHandle), request(PacketGetStatus, probeHandle))
	}
	err := a.do(ctx, "ECHO_REQ, GET_STATUS", ask, func() error {
		for {
			packet, err := a.conn.readPacket()
			switch {
			case err != nil:
				return err
			case packet.Type == PacketEchoRes && packet.arg(0) == probeHandle:
				behaviour = Gearmand
			case packet.Type == PacketStatusRes && packet.arg(0) == probeHandle:
				return nil
			default:
				return fmt.Errorf("%w: answer %v", ErrProtocol, packet)
			}
		}
	})
	return behaviour, err
}

// KnowsUnique tells whether gearmand has a job with the unique, queued or
// running, of whatever function. geard never answers; see Behaviour.
func (a *Admin) KnowsUnique(ctx context.Context, unique string) (bool, error) {
	known := false
	ask := func() error { return a.conn.write(request(PacketGetStatusUnique, unique)) }
	err := a.do(ctx, "GET_STATUS_UNIQUE", ask, func() error {
		packet, err := a.conn.readPacket()
		if err != nil {
			return err
		}
		if packet.Type != PacketStatusResUnique || packet.arg(0) != unique {
			return fmt.Errorf("%w: answer %v", ErrProtocol, packet)
		}
		known = packet.arg(1) == "1"
		return nil
	})
	return known, err
}

// CancelJob removes a queued job; the error wraps ErrUnknownJob if there is
// none. gearmand also accepts the handle of a running job: it tells the client
// that the job failed and the worker nothing.
func (a *Admin) CancelJob(ctx context.Context, handle string) error {
	if handle == "" || strings.ContainsAny(handle, " \t\r\n") {
		return fmt.Errorf("gearman: %q is no job handle", handle)
	}
	_, err := a.line(ctx, "cancel job "+handle)
	var refused *AdminError
	if errors.As(err, &refused) && refused.Code == "UNKNOWN_JOB" {
		return fmt.Errorf("%w: %s", ErrUnknownJob, handle)
	}
	return err
}

// Version returns the server's version. Only gearmand knows it.
func (a *Admin) Version(ctx context.Context) (string, error) {
	return a.line(ctx, "version")
}

// AdminError is a server's refusal of a command.
type AdminError struct {
	Command    string
	Code, Text string
}

func (e *AdminError) Error() string {
	return fmt.Sprintf("gearman: server refuses %q: %s %s", e.Command, e.Code, e.Text)
}

// line sends a command whose answer is "OK" with or without a text.
func (a *Admin) line(ctx context.Context, command string) (string, error) {
	var text string
	err := a.do(ctx, command, a.ask(command), func() error {
		line, err := a.answerLine(command)
		if err != nil {
			return err
		}
		word, rest, _ := strings.Cut(line, " ")
		if word != "OK" {
			return fmt.Errorf("%w: answer %q", ErrProtocol, line)
		}
		text = rest
		return nil
	})
	return text, err
}

// listOf sends a command whose answer is lines up to a ".".
func listOf[T any](ctx context.Context, a *Admin, command string, parse func(string) (T, error)) ([]T, error) {
	var list []T
	err := a.do(ctx, command, a.ask(command), func() error {
		for size := 0; size < maxAdminAnswer; {
			line, err := a.answerLine(command)
			if err != nil || line == "." {
				return err
			}
			size += len(line) + 1
			item, err := parse(line)
			if err != nil {
				return err
			}
			list = append(list, item)
		}
		return fmt.Errorf("%w: answer of more than %d bytes", ErrProtocol, maxAdminAnswer)
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// answerLine reads a line; one that starts with ERR is an *AdminError.
func (a *Admin) answerLine(command string) (string, error) {
	line, err := readLine(a.conn.reader)
	if err != nil {
		return "", err
	}
	if refusal, ok := strings.CutPrefix(line, "ERR "); ok {
		code, text, _ := strings.Cut(refusal, " ")
		return "", &AdminError{Command: command, Code: code, Text: strings.ReplaceAll(text, "+", " ")}
	}
	return line, nil
}

// ask sends a command of the text protocol.
func (a *Admin) ask(command string) func() error {
	return func() error { return a.conn.writeText(command + "\n") }
}

// do asks and has read take the answer, within ctx. command names it in errors.
func (a *Admin) do(ctx context.Context, command string, ask, read func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, adminTimeout, errors.New("no answer"))
	defer cancel()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return a.broken
	}
	stop := context.AfterFunc(ctx, func() { _ = a.conn.close() })
	err := ask()
	if err == nil {
		err = read()
	}
	stopped := stop()
	var refused *AdminError
	if err == nil || errors.As(err, &refused) {
		if !stopped {
			a.broken = fmt.Errorf("%w: closed during an earlier command", ErrConnectionLost)
		}
		return err
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	a.broken = fmt.Errorf("%w: closed after %q failed", ErrConnectionLost, command)
	_ = a.conn.close()
	return fmt.Errorf("gearman: %q: %w", command, err)
}

// splitNumbers cuts count numbers, each after a tab, from the end of a line.
// What is before them may hold tabs itself.
func splitNumbers(line string, count int) (string, []int, error) {
	numbers := make([]int, count)
	rest := line
	for i := count - 1; i >= 0; i-- {
		tab := strings.LastIndexByte(rest, '\t')
		if tab < 0 {
			return "", nil, fmt.Errorf("%w: line %q", ErrProtocol, line)
		}
		number, err := strconv.Atoi(rest[tab+1:])
		if err != nil {
			return "", nil, fmt.Errorf("%w: line %q", ErrProtocol, line)
		}
		numbers[i], rest = number, rest[:tab]
	}
	return rest, numbers, nil
}
