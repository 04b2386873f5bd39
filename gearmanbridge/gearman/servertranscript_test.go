package gearman_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

// act is one thing a connection of a transcript does. Connections are made at
// their first act; "ask" is an administrator's.
type act struct {
	connection string
	packet     gearman.Packet
	line       string // a command of the text protocol instead
	hangUp     bool   // the end of the connection instead
}

func does(connection string, packetType gearman.PacketType, args ...string) act {
	packet := gearman.Packet{Type: packetType}
	for _, arg := range args {
		packet.Args = append(packet.Args, []byte(arg))
	}
	return act{connection: connection, packet: packet}
}

func asks(line string) act              { return act{connection: "ask", line: line} }
func hangsUp(connection string) act     { return act{connection: connection, hangUp: true} }
func registers(functions ...string) act { return does("worker", gearman.PacketCanDo, functions...) }
func grabs() act                        { return does("worker", gearman.PacketGrabJobUniq) }
func sleeps() act                       { return does("worker", gearman.PacketPreSleep) }
func submits(function, unique string) act {
	return does("client", gearman.PacketSubmitJob, function, unique, "payload of "+unique)
}

// player plays acts and notes after each what every connection received.
type player struct {
	t           *testing.T
	address     string
	host        string
	connections map[string]net.Conn
	readers     map[string]*bufio.Reader
	names       []string
	transcript  []string
	syncs       int
}

func play(t *testing.T, address string, acts []act) []string {
	t.Helper()
	p := &player{t: t, address: address, connections: make(map[string]net.Conn), readers: make(map[string]*bufio.Reader)}
	host, err := os.Hostname()
	must(t, err)
	p.host = host
	for i, act := range acts {
		p.play(i, act)
	}
	for _, connection := range p.connections {
		_ = connection.Close()
	}
	return p.transcript
}

func (p *player) note(format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "H:"+p.host+":", "H:host:")
	p.transcript = append(p.transcript, text)
}

func (p *player) connect(name string) net.Conn {
	if p.connections[name] == nil {
		connection, err := net.Dial("tcp", p.address)
		must(p.t, err)
		p.connections[name] = connection
		p.readers[name] = bufio.NewReader(connection)
		p.names = append(p.names, name)
		slices.Sort(p.names)
	}
	_ = p.connections[name].SetDeadline(time.Now().Add(patience))
	return p.connections[name]
}

func (p *player) play(number int, act act) {
	connection := p.connect(act.connection)
	switch {
	case act.hangUp:
		p.note("%d. %s hangs up", number, act.connection)
		p.drop(act.connection)
		p.awaitGone()
	case act.line != "":
		p.note("%d. %s: %s", number, act.connection, act.line)
		_, err := io.WriteString(connection, strings.ReplaceAll(act.line, "H:host:", "H:"+p.host+":")+"\n")
		must(p.t, err)
		for _, line := range p.answer(act.connection, act.line) {
			p.note("    %s", line)
		}
	default:
		for i := range act.packet.Args {
			act.packet.Args[i] = []byte(strings.ReplaceAll(string(act.packet.Args[i]), "H:host:", "H:"+p.host+":"))
		}
		p.note("%d. %s: %v", number, act.connection, act.packet)
		must(p.t, gearman.WritePacket(connection, act.packet))
	}
	// First who acted: what it caused elsewhere is sent before its answer.
	if act.packet.Type != 0 {
		p.sync(act.connection)
	}
	for _, name := range slices.Clone(p.names) {
		if name != act.connection && name != "ask" {
			p.sync(name)
		}
	}
}

func (p *player) drop(name string) {
	_ = p.connections[name].Close()
	delete(p.connections, name)
	p.names = slices.DeleteFunc(p.names, func(other string) bool { return other == name })
}

// awaitGone waits until the server has seen the end of a connection.
func (p *player) awaitGone() {
	admin := dialAdmin(p.t, p.address)
	eventually(p.t, "the end of the connection", func() bool {
		workers, err := admin.Workers(testContext(p.t))
		must(p.t, err)
		return len(workers) == len(p.connections)+1
	})
	must(p.t, admin.Close())
	other := dialAdmin(p.t, p.address)
	eventually(p.t, "the end of the administrator", func() bool {
		workers, err := other.Workers(testContext(p.t))
		must(p.t, err)
		return len(workers) == len(p.connections)+1
	})
	must(p.t, other.Close())
}

// sync notes what a connection received, up to the answer to an echo.
func (p *player) sync(name string) {
	p.syncs++
	mark := fmt.Sprintf("sync %d", p.syncs)
	_ = p.connect(name)
	err := gearman.WritePacket(p.connections[name], gearman.Packet{Type: gearman.PacketEchoReq, Args: [][]byte{[]byte(mark)}})
	for err == nil {
		var packet gearman.Packet
		if packet, err = gearman.ReadPacket(p.readers[name], 0); err != nil {
			break
		}
		if packet.Type == gearman.PacketEchoRes && string(packet.Args[0]) == mark {
			return
		}
		p.note("    %s gets %v", name, packet)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		p.t.Fatalf("no answer on %s; so far:\n%s", name, strings.Join(p.transcript, "\n"))
	}
	p.note("    %s is closed", name)
	p.drop(name)
}

// answer reads the lines of an answer; lists come sorted and without numbers
// of file descriptors, that of workers without nameless ones.
func (p *player) answer(name, command string) []string {
	var lines []string
	list := !strings.HasPrefix(command, "cancel job ") && command != "nonsense"
	for {
		line, err := p.readers[name].ReadString('\n')
		must(p.t, err)
		if line == ".\n" || !list {
			slices.Sort(lines)
			return append(lines, fmt.Sprintf("%q", line))
		}
		if command == "workers" {
			_, line, _ = strings.Cut(line, " ")
			if strings.HasSuffix(line, " - :\n") {
				continue // no name and no function: such as the one that asks, or one that was closed and is listed still
			}
		}
		lines = append(lines, fmt.Sprintf("%q", line))
	}
}

// The embedded gearmand says what the real one says.
func TestEmbeddedGearmandIsLikeTheRealOne(t *testing.T) {
	for name, script := range gearmandScripts {
		t.Run(name, func(t *testing.T) {
			wanted := play(t, gearmantest.StartGearmand(t, script.arguments...), script.acts)
			server := &gearman.Server{}
			if script.configure != nil {
				script.configure(server)
			}
			embedded := play(t, gearmantest.Serve(t, server, "127.0.0.1:0"), script.acts)
			if diff := cmp.Diff(wanted, embedded); diff != "" {
				t.Errorf("(-real +embedded):\n%s", diff)
				t.Logf("transcript of the real one:\n%s", strings.Join(wanted, "\n"))
			}
		})
	}
}
