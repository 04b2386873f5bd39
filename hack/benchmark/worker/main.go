//go:build linux

// Command worker measures the worker of this project against Debian's own, `gearman -w`, on one gearmand: how many jobs that do nothing each gets
// through, by the clock and for a second of CPU. The two take turns, so that both meet the machine as it is, and what counts is the ratio.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/hack/programs"
)

const (
	function = "null"
	limit    = 2 * time.Minute // of one round
)

func main() {
	jobs := flag.Int("jobs", 50_000, "jobs of one round")
	rounds := flag.Int("rounds", 5, "rounds of each worker")
	work := flag.String("work", "", "be the worker under test, of the server at this address")
	window := flag.Int("window", 1, "with -work: how many grabs may be on their way at once")
	pin := flag.Bool("pin", false, "have each worker run on one core and all else on the others, so that jobs/s are those of one core")
	flag.Parse()
	run := func() error { return compare(*jobs, *rounds, *pin) }
	if *work != "" {
		run = func() error { return serve(*work, *window) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

// serve is the worker of this project, until it is killed.
func serve(address string, window int) error {
	worker := &gearman.Worker{Address: address, Window: window, Assigned: func(job *gearman.Job) { _ = job.Complete(nil) }}
	if err := worker.SetFunctions([]string{function}); err != nil {
		return err
	}
	return worker.Run(context.Background())
}

// measurement is one round of one worker.
type measurement struct{ wall, cpu time.Duration }

func compare(jobs, rounds int, pin bool) error {
	var core []string // before the arguments of a worker
	if pin {
		chosen, err := leaveCore()
		if err != nil {
			return fmt.Errorf("-pin: %w", err)
		}
		core = []string{"taskset", "-c", strconv.Itoa(chosen)}
	}
	folder, err := os.MkdirTemp("", "zuulbuild-benchmark-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	address, err := programs.FreeAddress()
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	gearmand, err := exec.LookPath("gearmand")
	if err != nil {
		gearmand = "/usr/sbin/gearmand" // not in the PATH of ordinary users
	}
	server, err := programs.Start(filepath.Join(folder, "gearmand.log"), gearmand, "--listen="+host, "--port="+port, "--log-file=stderr")
	if err != nil {
		return err
	}
	defer server.Stop(5 * time.Second)
	if err := awaitServer(address); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	workers := []struct {
		name      string
		arguments []string
	}{
		{"gearman -w", []string{"gearman", "-w", "-h", host, "-p", port, "-f", function}},
		{"zuulbuild", []string{self, "-work", address}},
		{"zuulbuild, two grabs at once, as for stop:", []string{self, "-work", address, "-window", "2"}},
	}
	measured := make([][]measurement, len(workers))
	for range rounds {
		for i, worker := range workers {
			m, err := round(address, jobs, slices.Concat(core, worker.arguments))
			if err != nil {
				return fmt.Errorf("%s: %w", worker.name, err)
			}
			measured[i] = append(measured[i], m)
		}
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	rate := "jobs/s"
	if pin {
		rate = "jobs/s on one core"
	}
	fmt.Fprintf(table, "%d jobs, median of %d rounds\t%s\tratio\tjobs/s of CPU\tratio\t\n", jobs, rounds, rate)
	var first, firstOfCPU float64
	for i, worker := range workers {
		perSecond := float64(jobs) / median(measured[i], func(m measurement) time.Duration { return m.wall }).Seconds()
		ofCPU := float64(jobs) / median(measured[i], func(m measurement) time.Duration { return m.cpu }).Seconds()
		if i == 0 {
			first, firstOfCPU = perSecond, ofCPU
		}
		fmt.Fprintf(table, "%s\t%.0f\t%.2f\t%.0f\t%.2f\t\n", worker.name, perSecond, perSecond/first, ofCPU, ofCPU/firstOfCPU)
	}
	return table.Flush()
}

// leaveCore has this process, and what it starts from now on, run on all cores it may use but the last, and returns that one.
func leaveCore() (int, error) {
	var cores unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cores); err != nil {
		return 0, err
	}
	if cores.Count() < 2 {
		return 0, errors.New("there is but one core")
	}
	last := 0
	for core := range 8 * int(unsafe.Sizeof(cores)) {
		if cores.IsSet(core) {
			last = core
		}
	}
	cores.Clear(last)
	threads, err := filepath.Glob("/proc/self/task/[0-9]*") // the threads to come are made by these
	if err != nil {
		return 0, err
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(filepath.Base(thread))
		if err == nil {
			err = unix.SchedSetaffinity(id, &cores)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return 0, err
		}
	}
	return last, nil
}

// awaitServer returns when the server takes connections.
func awaitServer(address string) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		connection, err := (&net.Dialer{Timeout: time.Second}).Dial("tcp", address)
		if err == nil {
			return connection.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("gearmand does not come up: %w", err)
		}
	}
}

func median(all []measurement, of func(measurement) time.Duration) time.Duration {
	values := make([]time.Duration, len(all))
	for i, m := range all {
		values[i] = of(m)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// round queues the jobs, starts the worker and waits until the server has none left.
func round(address string, jobs int, arguments []string) (measurement, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := queue(ctx, address, jobs); err != nil {
		return measurement{}, fmt.Errorf("queue the jobs: %w", err)
	}
	admin, err := gearman.DialAdmin(ctx, address, nil)
	if err != nil {
		return measurement{}, err
	}
	defer func() { _ = admin.Close() }()
	begun := time.Now()
	worker := exec.CommandContext(ctx, arguments[0], arguments[1:]...)
	if err := worker.Start(); err != nil {
		return measurement{}, err
	}
	var wall time.Duration
	for err == nil && wall == 0 {
		var left int
		if left, err = queued(ctx, admin); left == 0 {
			wall = time.Since(begun)
		}
		time.Sleep(5 * time.Millisecond) // the question costs the server time too
	}
	_ = worker.Process.Kill()
	_ = worker.Wait()
	usage, ok := worker.ProcessState.SysUsage().(*syscall.Rusage)
	if err != nil || !ok {
		return measurement{}, errors.Join(err, ctx.Err())
	}
	return measurement{wall, time.Duration(usage.Utime.Nano() + usage.Stime.Nano())}, nil
}

func queued(ctx context.Context, admin *gearman.Admin) (int, error) {
	functions, err := admin.Status(ctx)
	for _, f := range functions {
		if f.Name == function {
			return f.Queued + f.Running, err
		}
	}
	return 0, err
}

// queue submits background jobs, all in one go, and reads the answers.
func queue(ctx context.Context, address string, jobs int) error {
	connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer connection.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = connection.SetDeadline(deadline)
	}
	sent := make(chan error, 1)
	go func() {
		writer := bufio.NewWriter(connection)
		var err error
		for i := 0; i < jobs && err == nil; i++ {
			err = gearman.WritePacket(writer, gearman.Packet{Type: gearman.PacketSubmitJobBackground, Args: [][]byte{[]byte(function), fmt.Appendf(nil, "%d", i), nil}})
		}
		sent <- errors.Join(err, writer.Flush())
	}()
	reader := bufio.NewReader(connection)
	for range jobs {
		packet, err := gearman.ReadPacket(reader, 0)
		if err != nil {
			return err
		}
		if packet.Type != gearman.PacketJobCreated {
			return fmt.Errorf("%v was not expected", packet)
		}
	}
	return <-sent
}
