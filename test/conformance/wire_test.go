//go:build linux

package conformance

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

// wirePacket is a packet as it stood on the wire.
type wirePacket struct {
	connection int
	direction  gearmantest.Direction
	kind       gearman.PacketType
	body       []byte
	at         time.Time
}

// handle is the job a WORK_* or JOB_ASSIGN_UNIQ is about.
func (p wirePacket) handle() string {
	handle, _, _ := bytes.Cut(p.body, []byte{0})
	return string(handle)
}

// data is what follows the handle.
func (p wirePacket) data() []byte {
	_, data, _ := bytes.Cut(p.body, []byte{0})
	return data
}

// wireReader makes packets of what a proxy recorded, also of a recording that is read in parts.
type wireReader struct{ streams map[wireStream][]byte }

type wireStream struct {
	connection int
	direction  gearmantest.Direction
}

// packets are the packets that are whole with these chunks, in the order in which their last bytes came.
func (r *wireReader) packets(chunks []gearmantest.Chunk) []wirePacket {
	const header = 12
	if r.streams == nil {
		r.streams = map[wireStream][]byte{}
	}
	var packets []wirePacket
	for _, chunk := range chunks {
		s := wireStream{chunk.Connection, chunk.Direction}
		stream := r.streams[s]
		stream = append(stream, chunk.Bytes...)
		for len(stream) > 0 {
			if stream[0] != 0 { // a line of the text protocol
				_, rest, whole := bytes.Cut(stream, []byte("\n"))
				if !whole {
					break
				}
				stream = rest
				continue
			}
			if len(stream) < header {
				break
			}
			size := int(binary.BigEndian.Uint32(stream[8:header]))
			if len(stream) < header+size {
				break
			}
			kind := gearman.PacketType(binary.BigEndian.Uint32(stream[4:8]))
			packets = append(packets, wirePacket{s.connection, s.direction, kind, stream[header : header+size : header+size], chunk.Read})
			stream = stream[header+size:]
		}
		if len(stream) == 0 {
			delete(r.streams, s)
		} else {
			r.streams[s] = stream
		}
	}
	return packets
}

// wirePackets are the whole packets of a recording.
func wirePackets(recording []gearmantest.Chunk) []wirePacket {
	return new(wireReader).packets(recording)
}

// fault is a packet that breaks the contract; rule is the case of section 7 it breaks.
type fault struct{ rule, text string }

// badPackets are those that geard does not know and a worker would wait for in vain, that gearmand hangs up at, or that make it give out running jobs
// once more (sections 0.6, 0.9 and 4).
var badPackets = []gearman.PacketType{
	gearman.PacketGrabJob, gearman.PacketCanDoTimeout, gearman.PacketGrabJobAll, gearman.PacketMassDo, gearman.PacketOptionReq, gearman.PacketResetAbilities,
}

var resultPattern = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

// inspect finds what a worker sent that no server or no Zuul stands.
func inspect(recording []gearmantest.Chunk) []fault {
	i := newInspector()
	i.read(recording)
	return i.faults
}

// inspector looks at what a worker sends, chunk by chunk.
type inspector struct {
	reader     wireReader
	faults     []fault
	registered map[[2]string]bool    // by connection and function
	jobs       map[[2]string]wireJob // unfinished, by connection and handle
}

// wireJob is a job that a connection brought.
type wireJob struct {
	connection               int
	handle, function, unique string
}

func newInspector() *inspector {
	return &inspector{registered: map[[2]string]bool{}, jobs: map[[2]string]wireJob{}}
}

// read takes the next part of a recording, and returns the packets in it.
func (i *inspector) read(chunks []gearmantest.Chunk) []wirePacket {
	packets := i.reader.packets(chunks)
	for _, packet := range packets {
		if packet.direction == gearmantest.ToServer {
			i.sent(packet)
		} else if packet.kind == gearman.PacketJobAssignUniq {
			job := packet.assigned()
			i.jobs[i.key(packet, job.handle)] = job
		}
	}
	return packets
}

// assigned is the job of a JOB_ASSIGN_UNIQ.
func (p wirePacket) assigned() wireJob {
	parts := bytes.SplitN(p.body, []byte{0}, 4)
	return wireJob{p.connection, string(parts[0]), string(parts[1]), string(parts[2])}
}

// finishes tells whether a packet is the end of a job.
func (p wirePacket) finishes() bool {
	return p.kind == gearman.PacketWorkComplete || p.kind == gearman.PacketWorkFail || p.kind == gearman.PacketWorkException
}

func (i *inspector) key(packet wirePacket, name string) [2]string {
	return [2]string{fmt.Sprint(packet.connection), name}
}

func (i *inspector) complain(rule, text string, arguments ...any) {
	i.faults = append(i.faults, fault{rule, fmt.Sprintf(text, arguments...)})
}

func (i *inspector) sent(packet wirePacket) {
	if slices.Contains(badPackets, packet.kind) {
		i.complain("only-standard-packets", "%v", packet.kind)
	}
	function := i.key(packet, string(packet.body))
	switch packet.kind {
	case gearman.PacketCanDo:
		if i.registered[function] {
			i.complain("register-visible", "CAN_DO %s twice: gearmand counts it twice", function[1])
		}
		i.registered[function] = true
	case gearman.PacketCantDo:
		if !i.registered[function] {
			i.complain("cant-do-once", "CANT_DO %s, which is not registered: geard hangs up", function[1])
		}
		delete(i.registered, function)
		for _, job := range i.jobs {
			if job.connection == packet.connection && job.function == function[1] {
				i.complain("cant-do-once", "CANT_DO %s while a job of it runs: gearmand requeues the job", function[1])
			}
		}
	case gearman.PacketWorkWarning, gearman.PacketWorkException:
		i.complain("no-warning/exception", "%v", packet.kind)
	case gearman.PacketWorkData, gearman.PacketWorkComplete, gearman.PacketWorkFail, gearman.PacketWorkStatus:
		i.work(packet)
	}
}

// work looks at what is sent for a job.
func (i *inspector) work(packet wirePacket) {
	job := i.key(packet, packet.handle())
	running, assigned := i.jobs[job]
	if !assigned {
		i.complain("stale-handle", "%v for %s, which this connection did not bring or which has ended", packet.kind, packet.handle())
	}
	nuls := bytes.Count(packet.body, []byte{0})
	switch packet.kind {
	case gearman.PacketWorkStatus:
		if nuls != 2 {
			i.complain("complete-nul", "WORK_STATUS %q has not three parts", packet.body)
		}
		return
	case gearman.PacketWorkFail:
		if nuls != 0 {
			i.complain("complete-nul", "WORK_FAIL %q has a NUL", packet.body)
		}
	default:
		if nuls == 0 {
			i.complain("complete-nul", "%v %q has no NUL", packet.kind, packet.body)
		}
		if len(packet.data()) > 0 || strings.HasPrefix(running.function, "build:") {
			i.json(packet)
		}
	}
	if packet.kind != gearman.PacketWorkData {
		delete(i.jobs, job)
	}
}

func (i *inspector) json(packet wirePacket) {
	for _, b := range packet.data() {
		if b >= 0x80 {
			i.complain("ascii-json", "%v %.200q has bytes outside ASCII", packet.kind, packet.data())
			break
		}
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(packet.data(), &object); err != nil || object == nil {
		i.complain("ascii-json", "%v %.200q is no JSON object", packet.kind, packet.data())
		return
	}
	if result, given := object["result"]; given {
		var text string
		if json.Unmarshal(result, &text) != nil || !resultPattern.MatchString(text) {
			i.complain("never-empty", "result %s", result)
		}
	}
	var labels []string
	if json.Unmarshal(object["node_labels"], &labels) != nil || labels == nil {
		i.complain("node-stats", "node_labels %s", object["node_labels"])
	}
	var name *string
	if json.Unmarshal(object["node_name"], &name) != nil || name == nil {
		i.complain("node-stats", "node_name %s", object["node_name"])
	}
}

// TestInspect shows that faults are found.
func TestInspect(t *testing.T) {
	packet := func(kind gearman.PacketType, body string) []byte {
		header := []byte("\x00REQ")
		header = binary.BigEndian.AppendUint32(header, uint32(kind))
		return append(binary.BigEndian.AppendUint32(header, uint32(len(body))), body...)
	}
	good := `{"result":"SUCCESS","node_labels":[],"node_name":""}`
	assign := gearmantest.Chunk{Connection: 1, Direction: gearmantest.FromServer, Bytes: packet(gearman.PacketJobAssignUniq, "H:1\x00build:a\x00u\x00{}")}
	for name, test := range map[string]struct {
		rule string
		sent [][]byte
	}{
		"nothing wrong":         {"", [][]byte{packet(gearman.PacketWorkData, "H:1\x00"+good), packet(gearman.PacketWorkFail, "H:1")}},
		"GRAB_JOB":              {"only-standard-packets", [][]byte{packet(gearman.PacketGrabJob, "")}},
		"text between":          {"stale-handle", [][]byte{[]byte("status\n"), packet(gearman.PacketWorkFail, "H:2")}},
		"CAN_DO twice":          {"register-visible", [][]byte{packet(gearman.PacketCanDo, "f"), packet(gearman.PacketCanDo, "f")}},
		"CANT_DO":               {"cant-do-once", [][]byte{packet(gearman.PacketCantDo, "f")}},
		"CANT_DO while it runs": {"cant-do-once", [][]byte{packet(gearman.PacketCanDo, "build:a"), packet(gearman.PacketCantDo, "build:a")}},
		"WORK_WARNING":          {"no-warning/exception", [][]byte{packet(gearman.PacketWorkWarning, "H:1\x00x")}},
		"another handle":        {"stale-handle", [][]byte{packet(gearman.PacketWorkFail, "H:2")}},
		"two ends":              {"stale-handle", [][]byte{packet(gearman.PacketWorkFail, "H:1"), packet(gearman.PacketWorkFail, "H:1")}},
		"no NUL":                {"complete-nul", [][]byte{packet(gearman.PacketWorkComplete, "H:1")}},
		"NUL":                   {"complete-nul", [][]byte{packet(gearman.PacketWorkFail, "H:1\x00")}},
		"two parts":             {"complete-nul", [][]byte{packet(gearman.PacketWorkStatus, "H:1\x000")}},
		"not ASCII":             {"ascii-json", [][]byte{packet(gearman.PacketWorkData, "H:1\x00"+`{"x":"é","node_labels":[],"node_name":""}`)}},
		"no object":             {"ascii-json", [][]byte{packet(gearman.PacketWorkData, "H:1\x00[]")}},
		"empty result":          {"never-empty", [][]byte{packet(gearman.PacketWorkData, "H:1\x00"+`{"result":"","node_labels":[],"node_name":""}`)}},
		"null result":           {"never-empty", [][]byte{packet(gearman.PacketWorkData, "H:1\x00"+`{"result":null,"node_labels":[],"node_name":""}`)}},
		"null labels":           {"node-stats", [][]byte{packet(gearman.PacketWorkData, "H:1\x00"+`{"node_labels":null,"node_name":""}`)}},
		"null node":             {"node-stats", [][]byte{packet(gearman.PacketWorkData, "H:1\x00"+`{"node_labels":[],"node_name":null}`)}},
	} {
		recording := []gearmantest.Chunk{assign}
		for _, sent := range test.sent { // in two halves, as networks do
			recording = append(recording,
				gearmantest.Chunk{Connection: 1, Direction: gearmantest.ToServer, Bytes: sent[:5]},
				gearmantest.Chunk{Connection: 1, Direction: gearmantest.ToServer, Bytes: sent[5:]})
		}
		faults := inspect(recording)
		found := slices.ContainsFunc(faults, func(f fault) bool { return f.rule == test.rule })
		if test.rule == "" && len(faults) > 0 || test.rule != "" && !found {
			t.Errorf("%s: found %v", name, faults)
		}
	}
}
