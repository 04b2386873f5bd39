package gearman

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// DefaultMaxPacketSize bounds the body of a received packet, in bytes, where
// no other bound is given. Zuul sends arguments of several MiB.
const DefaultMaxPacketSize = 64 << 20

// headerSize is the length of magic, type and body length, 4 bytes each.
const headerSize = 12

var (
	requestMagic  = [4]byte{0, 'R', 'E', 'Q'}
	responseMagic = [4]byte{0, 'R', 'E', 'S'}
)

// ErrProtocol is wrapped by every error about bytes that are not the Gearman
// protocol. Nothing more can be read from such a connection.
var ErrProtocol = errors.New("gearman: protocol error")

// Packet is one message of the binary protocol.
type Packet struct {
	// Response tells packets from the server (magic \0RES) from packets to
	// it (magic \0REQ).
	Response bool
	Type     PacketType
	// Args are the arguments as the type defines them. The last one may hold
	// any bytes, the ones before it none that are NUL. A packet of a type
	// this package does not know has its whole body as the only argument.
	Args [][]byte
}

// String names the packet and shows its arguments, shortened, for logs.
func (p Packet) String() string {
	var text bytes.Buffer
	text.WriteString(p.Type.String())
	for _, arg := range p.Args {
		if len(arg) > 64 {
			fmt.Fprintf(&text, " %q…(%d bytes)", arg[:64], len(arg))
			continue
		}
		fmt.Fprintf(&text, " %q", arg)
	}
	return text.String()
}

// arg returns argument i as a string, or "" where there is none.
func (p Packet) arg(i int) string {
	if i >= len(p.Args) {
		return ""
	}
	return string(p.Args[i])
}

func request(packetType PacketType, args ...string) Packet {
	return Packet{Type: packetType, Args: byteSlices(args)}
}

func response(packetType PacketType, args ...string) Packet {
	return Packet{Response: true, Type: packetType, Args: byteSlices(args)}
}

func byteSlices(args []string) [][]byte {
	if len(args) == 0 {
		return nil
	}
	slices := make([][]byte, len(args))
	for i, arg := range args {
		slices[i] = []byte(arg)
	}
	return slices
}

// bodySize is the length of the arguments joined by NULs.
func (p Packet) bodySize() int {
	size := max(len(p.Args)-1, 0)
	for _, arg := range p.Args {
		size += len(arg)
	}
	return size
}

// WritePacket writes p to w, in several small writes: give it a buffer.
//
// The arguments are joined by NULs, so WORK_COMPLETE and WORK_DATA keep the
// NUL after the handle when their data is empty (without it gearmand loses
// its place in the stream), and WORK_FAIL is the bare handle.
func WritePacket(w io.Writer, p Packet) error {
	size := p.bodySize()
	if size > 1<<31-1 {
		return fmt.Errorf("gearman: %v of %d bytes is too large to send", p.Type, size)
	}
	header := make([]byte, 0, headerSize)
	if p.Response {
		header = append(header, responseMagic[:]...)
	} else {
		header = append(header, requestMagic[:]...)
	}
	header = binary.BigEndian.AppendUint32(header, uint32(p.Type))
	header = binary.BigEndian.AppendUint32(header, uint32(size))
	if _, err := w.Write(header); err != nil {
		return err
	}
	for i, arg := range p.Args {
		if i > 0 {
			if _, err := w.Write([]byte{0}); err != nil {
				return err
			}
		}
		if _, err := w.Write(arg); err != nil {
			return err
		}
	}
	return nil
}

// ReadPacket reads one packet from r whose body has at most limit bytes; 0
// means DefaultMaxPacketSize. Memory is taken as bytes arrive, never because
// a peer announced them.
//
// The error is io.EOF if r ends before a packet begins, io.ErrUnexpectedEOF
// if it ends within one, and wraps ErrProtocol if the bytes are no packet,
// have fewer arguments than the type needs or are longer than the limit.
func ReadPacket(r io.Reader, limit int) (Packet, error) {
	if limit <= 0 {
		limit = DefaultMaxPacketSize
	}
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return Packet{}, err
	}
	var p Packet
	switch [4]byte(header[:4]) {
	case requestMagic:
	case responseMagic:
		p.Response = true
	default:
		return Packet{}, fmt.Errorf("%w: packet starts with %q", ErrProtocol, header[:4])
	}
	p.Type = PacketType(binary.BigEndian.Uint32(header[4:8]))
	size := binary.BigEndian.Uint32(header[8:12])
	if uint64(size) > uint64(limit) {
		return Packet{}, fmt.Errorf("%w: %v of %d bytes is over the limit of %d", ErrProtocol, p.Type, size, limit)
	}
	body, err := readBody(r, int(size))
	if err != nil {
		return Packet{}, err
	}
	if p.Args, err = splitBody(p.Type, body); err != nil {
		return Packet{}, err
	}
	return p, nil
}

// readBody reads exactly size bytes, growing its buffer as they arrive.
func readBody(r io.Reader, size int) ([]byte, error) {
	const trusted = 64 << 10
	var body bytes.Buffer
	body.Grow(min(size, trusted))
	if _, err := io.CopyN(&body, r, int64(size)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return body.Bytes(), nil
}

// splitBody cuts a body at its first NULs into as many arguments as the type
// has; NULs after that belong to the last argument.
func splitBody(packetType PacketType, body []byte) ([][]byte, error) {
	count, known := packetType.argumentCount()
	if !known {
		return [][]byte{body}, nil
	}
	if count == 0 {
		if len(body) > 0 {
			return nil, fmt.Errorf("%w: %v with a body of %d bytes", ErrProtocol, packetType, len(body))
		}
		return nil, nil
	}
	args := bytes.SplitN(body, []byte{0}, count)
	if len(args) < count {
		return nil, fmt.Errorf("%w: %v with %d arguments instead of %d", ErrProtocol, packetType, len(args), count)
	}
	if packetType == PacketWorkFail {
		// Some workers end the handle with a NUL, and both servers let them.
		args[0] = bytes.TrimSuffix(args[0], []byte{0})
	}
	return args, nil
}
