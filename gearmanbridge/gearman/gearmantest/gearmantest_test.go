package gearmantest_test

import (
	"bufio"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a server that sends back what it gets, and the connection to it
// through a proxy.
func echo(t *testing.T) (*gearmantest.Proxy, net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = listener.Close(); <-ended })
	proxy := gearmantest.NewProxy(t, listener.Addr().String())
	return proxy, dial(t, proxy)
}

func dial(t *testing.T, proxy *gearmantest.Proxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", proxy.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// exchange sends text and returns what comes back within the time.
func exchange(conn net.Conn, text string, within time.Duration) (string, error) {
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	_ = conn.SetReadDeadline(time.Now().Add(within))
	got := make([]byte, len(text))
	n, err := io.ReadFull(conn, got)
	return string(got[:n]), err
}

const patience = 10 * time.Second

func TestProxyPassesAndRecords(t *testing.T) {
	proxy, conn := echo(t)
	packet := "\x00REQ\x00\x00\x00\x01\x00\x00\x00\x01f"
	if got, err := exchange(conn, packet, patience); got != packet {
		t.Fatalf("got %q, %v", got, err)
	}
	want := []gearmantest.Chunk{
		{Connection: 1, Direction: gearmantest.ToServer, Bytes: []byte(packet)},
		{Connection: 1, Direction: gearmantest.FromServer, Bytes: []byte(packet)},
	}
	if diff := cmp.Diff(want, proxy.Recording(), cmpopts.IgnoreFields(gearmantest.Chunk{}, "Read")); diff != "" {
		t.Errorf("recording (-want +got):\n%s", diff)
	}
	packets := proxy.Packets(gearmantest.ToServer)
	if diff := cmp.Diff([]gearman.Packet{{Type: gearman.PacketCanDo, Args: [][]byte{[]byte("f")}}}, packets); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
	if !proxy.Connected(1) || proxy.Connected(2) {
		t.Error("there is one connection, the first")
	}
	if taken := proxy.Take(); len(taken) != len(want) || taken[0].Read.IsZero() {
		t.Errorf("taken: %v", taken)
	}
	if len(proxy.Recording()) > 0 {
		t.Error("what was taken is still there")
	}
	proxy.Forget()
	if len(proxy.Recording()) > 0 || proxy.Accepted() != 1 {
		t.Error("the recording is not forgotten")
	}
}

func TestProxyCutsAndRefuses(t *testing.T) {
	proxy, conn := echo(t)
	if _, err := exchange(conn, "x", patience); err != nil {
		t.Fatal(err)
	}
	proxy.Refuse(true)
	proxy.Cut()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := bufio.NewReader(conn).ReadByte(); err == nil {
		t.Error("a cut connection lives")
	}
	if got, err := exchange(dial(t, proxy), "x", patience); err == nil {
		t.Errorf("a refused connection answers %q", got)
	}
	proxy.Refuse(false)
	if got, err := exchange(dial(t, proxy), "x", patience); got != "x" {
		t.Errorf("after the refusal: %q, %v", got, err)
	}
}

func TestProxyIsSilentWhenHalfOpen(t *testing.T) {
	proxy, conn := echo(t)
	proxy.HalfOpen(true)
	if got, _ := exchange(conn, "lost", 50*time.Millisecond); got != "" {
		t.Errorf("got %q through a silent network", got)
	}
	gearmantest.Eventually(t, patience, "the lost bytes", func() bool { return len(proxy.Recording()) == 1 })
	proxy.HalfOpen(false)
	if got, err := exchange(conn, "kept", patience); got != "kept" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestProxyDelays(t *testing.T) {
	proxy, conn := echo(t)
	proxy.Delay(30 * time.Millisecond)
	begun := time.Now()
	if got, err := exchange(conn, "x", patience); got != "x" {
		t.Fatalf("got %q, %v", got, err)
	}
	if took := time.Since(begun); took < 60*time.Millisecond {
		t.Errorf("there and back took %v", took)
	}
}

func TestProxyInjects(t *testing.T) {
	proxy, conn := echo(t)
	if got, err := exchange(conn, "x", patience); got != "x" {
		t.Fatalf("got %q, %v", got, err)
	}
	for _, direction := range []gearmantest.Direction{gearmantest.FromServer, gearmantest.ToServer} {
		if err := proxy.Inject(1, direction, []byte("injected")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len("injected")) // what goes to the server, it sends back
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "injected" {
			t.Errorf("%v: got %q, %v", direction, got, err)
		}
	}
	if chunks := proxy.Recording(); len(chunks) != 5 || string(chunks[2].Bytes) != "injected" {
		t.Errorf("recording %v", chunks)
	}
	proxy.Cut()
	if proxy.Inject(1, gearmantest.FromServer, []byte("x")) == nil {
		t.Error("a closed connection takes bytes")
	}
}

func TestGearmandStopsAndStarts(t *testing.T) {
	server := gearmantest.NewGearmand(t)
	for name, end := range map[string]func(){"Stop": server.Stop, "Kill": server.Kill} {
		end()
		if conn, err := net.Dial("tcp", server.Address); err == nil {
			_ = conn.Close()
			t.Errorf("it listens after %s", name)
		}
		server.Start()
	}
	admin, err := gearman.DialAdmin(t.Context(), server.Address, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	server.Pause()
	server.Resume()
	if _, err := admin.Version(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestGearmandListensElsewhere(t *testing.T) {
	const host = "127.0.0.2"
	if got, _, _ := net.SplitHostPort(gearmantest.StartGearmandAt(t, host)); got != host {
		t.Errorf("it listens at %s", got)
	}
}

// complaints counts errors instead of failing.
type complaints struct {
	testing.TB
	count atomic.Int64
}

func (c *complaints) Errorf(string, ...any) { c.count.Add(1) }

func TestWatchWorkers(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	worker, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = worker.Close() }()
	if _, err := io.WriteString(worker, "\x00REQ\x00\x00\x00\x01\x00\x00\x00\x01f"); err != nil { // CAN_DO
		t.Fatal(err)
	}
	admin, err := gearman.DialAdmin(t.Context(), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	gearmantest.Eventually(t, patience, "the worker of f", func() bool {
		lines, err := admin.Status(t.Context())
		return err == nil && len(lines) == 1 && lines[0].Workers == 1
	})

	served, unknown := &complaints{TB: t}, &complaints{TB: t}
	stop := gearmantest.WatchWorkers(served, address, time.Millisecond, "f")
	stopUnknown := gearmantest.WatchWorkers(unknown, address, time.Hour, "f", "g")
	if served.count.Load() != 0 || unknown.count.Load() != 1 {
		t.Errorf("the first look found %d faults, and %d with a function that nobody serves", served.count.Load(), unknown.count.Load())
	}
	_ = worker.Close()
	gearmantest.Eventually(t, patience, "a complaint of f", func() bool { return served.count.Load() > 0 })
	if looks := stop(); looks.Count < 2 || looks.Without < 1 || looks.Longest <= 0 || served.count.Load() != 1 {
		t.Errorf("%+v, and %d complaints of one absence", looks, served.count.Load())
	}
	if looks := stopUnknown(); looks.Count != 1 || looks.Without != 1 {
		t.Errorf("with a function that nobody serves: %+v", looks)
	}

	server, running := gearmantest.StartServer(t, gearman.Geard)
	lost := &complaints{TB: t}
	gearmantest.WatchWorkers(lost, server, time.Millisecond)
	if err := running.Close(); err != nil {
		t.Fatal(err)
	}
	gearmantest.Eventually(t, patience, "a complaint of a server that is gone", func() bool { return lost.count.Load() == 1 })
}
