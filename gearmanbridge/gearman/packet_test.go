package gearman

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func TestPacketBytes(t *testing.T) {
	tests := map[string]struct {
		packet Packet
		bytes  string
	}{
		"no arguments":           {request(PacketGrabJobUniq), "\x00REQ\x00\x00\x00\x1e\x00\x00\x00\x00"},
		"one argument":           {request(PacketCanDo, "build:a"), "\x00REQ\x00\x00\x00\x01\x00\x00\x00\x07build:a"},
		"bare handle":            {request(PacketWorkFail, "H:a:1"), "\x00REQ\x00\x00\x00\x0e\x00\x00\x00\x05H:a:1"},
		"NUL before empty data":  {request(PacketWorkComplete, "H:a:1", ""), "\x00REQ\x00\x00\x00\x0d\x00\x00\x00\x06H:a:1\x00"},
		"empty progress data":    {request(PacketWorkData, "H:a:1", ""), "\x00REQ\x00\x00\x00\x1c\x00\x00\x00\x06H:a:1\x00"},
		"three parts":            {request(PacketWorkStatus, "H", "1", "10"), "\x00REQ\x00\x00\x00\x0c\x00\x00\x00\x06H\x001\x0010"},
		"NULs in the last":       {response(PacketJobAssignUniq, "H", "f", "u", "a\x00b\x00"), "\x00RES\x00\x00\x00\x1f\x00\x00\x00\x0aH\x00f\x00u\x00a\x00b\x00"},
		"empty arguments":        {request(PacketSubmitJob, "f", "", ""), "\x00REQ\x00\x00\x00\x07\x00\x00\x00\x03f\x00\x00"},
		"type nobody knows":      {request(999, "a\x00b"), "\x00REQ\x00\x00\x03\xe7\x00\x00\x00\x03a\x00b"},
		"function with a colon":  {request(PacketCanDo, "build:a:b"), "\x00REQ\x00\x00\x00\x01\x00\x00\x00\x09build:a:b"},
		"response without parts": {response(PacketNoop), "\x00RES\x00\x00\x00\x06\x00\x00\x00\x00"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var written bytes.Buffer
			if err := WritePacket(&written, test.packet); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.bytes, written.String()); diff != "" {
				t.Errorf("bytes (-want +got):\n%s", diff)
			}
			read, err := ReadPacket(iotest.OneByteReader(strings.NewReader(test.bytes)), 0)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.packet, read); diff != "" {
				t.Errorf("read again (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadPacketTakesNULAfterHandleOfWorkFail(t *testing.T) {
	packet, err := ReadPacket(strings.NewReader("\x00RES\x00\x00\x00\x0e\x00\x00\x00\x03H:1"+"\x00RES"), 0)
	if err != nil || packet.arg(0) != "H:1" {
		t.Errorf("got %v, %v", packet, err)
	}
	packet, err = ReadPacket(strings.NewReader("\x00RES\x00\x00\x00\x0e\x00\x00\x00\x04H:1\x00"), 0)
	if err != nil || packet.arg(0) != "H:1" {
		t.Errorf("got %v, %v", packet, err)
	}
}

func TestReadPacketRefuses(t *testing.T) {
	tests := map[string]struct {
		bytes string
		limit int
		want  error
	}{
		"nothing":              {"", 0, io.EOF},
		"half a header":        {"\x00RES\x00\x00", 0, io.ErrUnexpectedEOF},
		"half a body":          {"\x00RES\x00\x00\x00\x08\x00\x00\x00\x04H:", 0, io.ErrUnexpectedEOF},
		"no body":              {"\x00RES\x00\x00\x00\x08\x00\x00\x00\x04", 0, io.ErrUnexpectedEOF},
		"text":                 {"HTTP/1.1 400 Bad Request", 0, ErrProtocol},
		"small magic":          {"\x00res\x00\x00\x00\x08\x00\x00\x00\x00", 0, ErrProtocol},
		"over the limit":       {"\x00RES\x00\x00\x00\x08\x00\x00\x00\x05H:a:1", 4, ErrProtocol},
		"4 GiB announced":      {"\x00RES\x00\x00\x00\x08\xff\xff\xff\xff", 0, ErrProtocol},
		"two of four":          {"\x00RES\x00\x00\x00\x1f\x00\x00\x00\x03H\x00f", 0, ErrProtocol},
		"three of four":        {"\x00RES\x00\x00\x00\x1f\x00\x00\x00\x05H\x00f\x00u", 0, ErrProtocol},
		"status of two parts":  {"\x00REQ\x00\x00\x00\x0c\x00\x00\x00\x03H\x001", 0, ErrProtocol},
		"data without a NUL":   {"\x00REQ\x00\x00\x00\x1c\x00\x00\x00\x01H", 0, ErrProtocol},
		"arguments where none": {"\x00RES\x00\x00\x00\x06\x00\x00\x00\x01H", 0, ErrProtocol},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			packet, err := ReadPacket(strings.NewReader(test.bytes), test.limit)
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, %v; want %v", packet, err, test.want)
			}
		})
	}
}

// A peer that announces much and sends little must not cost memory.
func TestReadPacketTakesMemoryAsBytesArrive(t *testing.T) {
	announced := "\x00RES\x00\x00\x00\x08\x04\x00\x00\x00" // 64 MiB
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := ReadPacket(strings.NewReader(announced+"H:a:1"), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("got %v, want io.ErrUnexpectedEOF", err)
	}
	runtime.ReadMemStats(&after)
	if taken := after.TotalAlloc - before.TotalAlloc; taken > 1<<20 {
		t.Errorf("took %d bytes for a packet of 5", taken)
	}
}

func TestReadPacketOfManyMiB(t *testing.T) {
	payload := strings.Repeat("x\x00y", 3<<20)
	var written bytes.Buffer
	if err := WritePacket(&written, request(PacketSubmitJob, "f", "u", payload)); err != nil {
		t.Fatal(err)
	}
	packet, err := ReadPacket(&written, 0)
	if err != nil || packet.arg(2) != payload {
		t.Errorf("%d bytes came back as %d, %v", len(payload), len(packet.arg(2)), err)
	}
}

// FuzzReadPacket checks that whatever is read was there, and is written as it
// was read.
func FuzzReadPacket(f *testing.F) {
	f.Add([]byte("\x00RES\x00\x00\x00\x1f\x00\x00\x00\x0aH\x00f\x00u\x00a\x00b\x00"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		const limit = 1 << 16
		reader := bytes.NewReader(stream)
		packet, err := ReadPacket(reader, limit)
		if err != nil {
			return
		}
		taken := stream[:len(stream)-reader.Len()]
		if packet.Type == PacketWorkFail && bytes.HasSuffix(taken, []byte{0}) {
			return // its last NUL is not kept
		}
		var written bytes.Buffer
		if err := WritePacket(&written, packet); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(written.Bytes(), taken) {
			t.Errorf("read %q, wrote %q", taken, written.Bytes())
		}
		_ = packet.String()
	})
}

func TestPacketString(t *testing.T) {
	packet := request(PacketWorkData, "H:a:1", strings.Repeat("x", 100))
	want := `WORK_DATA "H:a:1" "` + strings.Repeat("x", 64) + `"…(100 bytes)`
	if got := packet.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := PacketType(77).String(); got != "packet type 77" {
		t.Errorf("got %s", got)
	}
}

func TestValidFunctionName(t *testing.T) {
	longest := strings.Repeat("f", MaxFunctionName)
	for _, name := range []string{"f", "build:a:b", "stop:manager", "a.b_c-D!~", longest} {
		if err := ValidFunctionName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "a b", "x\ty", "tést", "bad\xff", "a\x00b", "a\nb", "a\x7f", longest + "f"} {
		if ValidFunctionName(name) == nil {
			t.Errorf("%q is allowed", name)
		}
	}
}

func TestParseJobStatus(t *testing.T) {
	tests := map[string]JobStatus{
		"H 1 1 5 100": {Known: true, Running: true, Numerator: 5, Denominator: 100},
		"H 1 0 0 0":   {Known: true},
		"H 0 0 0 0":   {},
		"H 1 1  ":     {Known: true, Running: true}, // geard before WORK_STATUS
	}
	for text, want := range tests {
		got, err := parseJobStatus(byteSlices(strings.Split(text, " "))[1:])
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
	}
	if _, err := parseJobStatus(byteSlices([]string{"1", "1", "x", "1"})); !errors.Is(err, ErrProtocol) {
		t.Errorf("got %v, want ErrProtocol", err)
	}
}

func TestWithPort(t *testing.T) {
	tests := map[string]string{
		"host": "host:4730", "host:1": "host:1", "10.0.0.1": "10.0.0.1:4730", "[::1]": "[::1]:4730", "[::1]:1": "[::1]:1",
	}
	for address, want := range tests {
		if got := withPort(address); got != want {
			t.Errorf("%s: got %s, want %s", address, got, want)
		}
	}
}
