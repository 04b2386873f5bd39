package gearman_test

import (
	"testing"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

// dialRaw returns a connection to a server as a mockServer holds one: bytes in,
// bytes out.
func dialRaw(t *testing.T, address string) *mockServer {
	t.Helper()
	connection := &mockServer{t: t}
	connection.dial(address)
	t.Cleanup(connection.hangUp)
	return connection
}

func (m *mockServer) request(packetType gearman.PacketType, args ...string) {
	m.t.Helper()
	must(m.t, gearman.WritePacket(m.conn, does("", packetType, args...).packet))
}

// receives reads the next packet, described as Packet.String does.
func (m *mockServer) receives(want string) {
	m.t.Helper()
	_ = m.conn.SetReadDeadline(time.Now().Add(patience))
	packet, err := gearman.ReadPacket(m.conn, 0)
	if err != nil || packet.String() != want {
		m.t.Fatalf("got %v, %v; want %s", packet, err, want)
	}
}

func TestGeardOrdersByPriorityAcrossFunctions(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	client, worker := dialRaw(t, address), dialRaw(t, address)
	for _, submission := range []struct {
		packetType gearman.PacketType
		function   string
		unique     string
	}{
		{gearman.PacketSubmitJobLow, "a", "1"},
		{gearman.PacketSubmitJob, "b", "2"},
		{gearman.PacketSubmitJob, "a", "3"},
		{gearman.PacketSubmitJobHigh, "a", "4"},
		{gearman.PacketSubmitJobHigh, "b", "4"}, // equal uniques are two jobs
	} {
		client.request(submission.packetType, submission.function, submission.unique, "")
	}
	for _, handle := range []string{"1", "2", "3", "4", "5"} {
		client.receives(`JOB_CREATED "H:127.0.0.1:` + handle + `"`)
	}
	worker.request(gearman.PacketCanDo, "b")
	worker.request(gearman.PacketCanDo, "a")
	for _, want := range []string{
		`"H:127.0.0.1:4" "a" "4" ""`, `"H:127.0.0.1:5" "b" "4" ""`, `"H:127.0.0.1:2" "b" "2" ""`,
		`"H:127.0.0.1:3" "a" "3" ""`, `"H:127.0.0.1:1" "a" "1" ""`,
	} {
		worker.request(gearman.PacketGrabJobUniq)
		worker.receives("JOB_ASSIGN_UNIQ " + want)
	}
	worker.request(gearman.PacketGrabJobUniq)
	worker.receives("NO_JOB")
}

func TestGeardGivesNoAnswerToWhatItDoesNotKnow(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	raw := dialRaw(t, address)
	raw.request(gearman.PacketCanDoTimeout, "f", "10") // registers nothing
	raw.request(gearman.PacketSubmitJob, "f", "", "")
	raw.receives(`JOB_CREATED "H:127.0.0.1:1"`)
	for packetType, args := range map[gearman.PacketType][]string{
		gearman.PacketGrabJob: nil, gearman.PacketGrabJobAll: nil, gearman.PacketEchoReq: {"x"},
		gearman.PacketOptionReq: {"exceptions"}, gearman.PacketGetStatusUnique: {"u"}, gearman.PacketMassDo: {"f"},
		gearman.PacketSubmitJobBackground: {"f", "", ""}, gearman.PacketAllYours: nil,
	} {
		raw.request(packetType, args...)
	}
	raw.send("version\nshow jobs\nnonsense\n")
	raw.request(gearman.PacketGrabJobUniq)
	raw.receives("NO_JOB")
	raw.request(gearman.PacketGetStatus, "H:127.0.0.1:1")
	raw.receives(`STATUS_RES "H:127.0.0.1:1" "1" "0" "" ""`)
	raw.request(gearman.PacketGetStatus, "nope")
	raw.receives(`STATUS_RES "nope" "0" "0" "" ""`)
}

func TestGeardHangsUp(t *testing.T) {
	for name, act := range map[string]act{
		"CANT_DO of what is not registered": does("", gearman.PacketCantDo, "f"),
		"WORK_STATUS of two parts":          does("", gearman.PacketWorkStatus, "H:1", "1"),
		"unknown type":                      does("", gearman.PacketType(999), ""),
		"WORK_DATA without NUL":             does("", gearman.PacketWorkData, "H:1"),
	} {
		t.Run(name, func(t *testing.T) {
			address, _ := gearmantest.StartServer(t, gearman.Geard)
			raw := dialRaw(t, address)
			must(t, gearman.WritePacket(raw.conn, act.packet))
			raw.expectEnd()
		})
	}
}

func TestGeardJobsDieWithTheirConnections(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	admin := dialAdmin(t, address)
	client, worker, other := dialRaw(t, address), dialRaw(t, address), dialRaw(t, address)
	worker.request(gearman.PacketCanDo, "f")
	client.request(gearman.PacketSubmitJob, "f", "1", "")
	client.receives(`JOB_CREATED "H:127.0.0.1:1"`)
	client.request(gearman.PacketSubmitJob, "f", "2", "")
	client.receives(`JOB_CREATED "H:127.0.0.1:2"`)
	worker.request(gearman.PacketGrabJobUniq)
	worker.receives(`JOB_ASSIGN_UNIQ "H:127.0.0.1:1" "f" "1" ""`)

	// It does not ask whose handle it is.
	other.request(gearman.PacketWorkStatus, "H:127.0.0.1:1", "5", "100")
	client.receives(`WORK_STATUS "H:127.0.0.1:1" "5" "100"`)
	other.request(gearman.PacketGetStatus, "H:127.0.0.1:1")
	other.receives(`STATUS_RES "H:127.0.0.1:1" "1" "1" "5" "100"`)

	// The worker's job fails, with the magic of a request.
	worker.hangUp()
	client.expect("\x00REQ\x00\x00\x00\x0e\x00\x00\x00\x0dH:127.0.0.1:1")
	if status := functionStatus(t, admin, "f"); status != (gearman.FunctionStatus{Name: "f", Queued: 1}) {
		t.Errorf("after the worker's loss: %+v", status)
	}
	other.request(gearman.PacketCanDo, "f")
	other.request(gearman.PacketGrabJobUniq)
	other.receives(`JOB_ASSIGN_UNIQ "H:127.0.0.1:2" "f" "2" ""`)
	client.hangUp()
	eventually(t, "no job of the lost client", func() bool { return functionStatus(t, admin, "f").Running == 0 })
	other.request(gearman.PacketWorkComplete, "H:127.0.0.1:2", "") // ignored
	other.request(gearman.PacketGetStatus, "H:127.0.0.1:2")
	other.receives(`STATUS_RES "H:127.0.0.1:2" "0" "0" "" ""`)
}

func TestGeardWakesAtEveryPreSleep(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	client, worker := dialRaw(t, address), dialRaw(t, address)
	worker.request(gearman.PacketCanDo, "f")
	worker.request(gearman.PacketPreSleep)
	worker.request(gearman.PacketGrabJobUniq)
	worker.receives("NO_JOB")
	client.request(gearman.PacketSubmitJob, "f", "1", "")
	client.receives(`JOB_CREATED "H:127.0.0.1:1"`)
	worker.receives("NOOP") // a grab does not end sleep
	client.request(gearman.PacketSubmitJob, "f", "2", "")
	worker.request(gearman.PacketPreSleep)
	worker.receives("NOOP")
	worker.expectSilence(20 * time.Millisecond)
}

func TestGeardCancel(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	client, worker, admin := dialRaw(t, address), dialRaw(t, address), dialRaw(t, address)
	client.request(gearman.PacketSubmitJob, "f", "1", "")
	client.request(gearman.PacketSubmitJob, "f", "2", "")
	client.receives(`JOB_CREATED "H:127.0.0.1:1"`)
	client.receives(`JOB_CREATED "H:127.0.0.1:2"`)
	worker.request(gearman.PacketCanDo, "f")
	worker.request(gearman.PacketGrabJobUniq)
	worker.receives(`JOB_ASSIGN_UNIQ "H:127.0.0.1:1" "f" "1" ""`)
	admin.send("cancel job H:127.0.0.1:1\n")
	admin.expect("ERR UNKNOWN_JOB\n")
	admin.send("cancel job H:127.0.0.1:2\r\n")
	admin.expect("OK\n")
	admin.send("status\n")
	admin.expect("f\t1\t1\t1\n.\n")
	client.expectSilence(20 * time.Millisecond)
}
