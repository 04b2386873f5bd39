package gearman

import "fmt"

// PacketType is the number of a packet in the binary protocol.
type PacketType uint32

// The packet types, with the protocol's numbers. The embedded server answers
// some that a Worker never sends because geard does not know them: GRAB_JOB,
// GRAB_JOB_ALL, CAN_DO_TIMEOUT, ECHO_REQ, OPTION_REQ and GET_STATUS_UNIQUE.
const (
	PacketCanDo               PacketType = 1
	PacketCantDo              PacketType = 2
	PacketResetAbilities      PacketType = 3
	PacketPreSleep            PacketType = 4
	PacketNoop                PacketType = 6
	PacketSubmitJob           PacketType = 7
	PacketJobCreated          PacketType = 8
	PacketGrabJob             PacketType = 9
	PacketNoJob               PacketType = 10
	PacketJobAssign           PacketType = 11
	PacketWorkStatus          PacketType = 12
	PacketWorkComplete        PacketType = 13
	PacketWorkFail            PacketType = 14
	PacketGetStatus           PacketType = 15
	PacketEchoReq             PacketType = 16
	PacketEchoRes             PacketType = 17
	PacketSubmitJobBackground PacketType = 18
	PacketError               PacketType = 19
	PacketStatusRes           PacketType = 20
	PacketSubmitJobHigh       PacketType = 21
	PacketSetClientID         PacketType = 22
	PacketCanDoTimeout        PacketType = 23
	PacketAllYours            PacketType = 24
	PacketWorkException       PacketType = 25
	PacketOptionReq           PacketType = 26
	PacketOptionRes           PacketType = 27
	PacketWorkData            PacketType = 28
	PacketWorkWarning         PacketType = 29
	PacketGrabJobUniq         PacketType = 30
	PacketJobAssignUniq       PacketType = 31
	PacketSubmitJobHighBG     PacketType = 32
	PacketSubmitJobLow        PacketType = 33
	PacketSubmitJobLowBG      PacketType = 34
	PacketGrabJobAll          PacketType = 39
	PacketJobAssignAll        PacketType = 40
	PacketGetStatusUnique     PacketType = 41
	PacketStatusResUnique     PacketType = 42
	PacketMassDo              PacketType = 101
)

var packetTypes = map[PacketType]struct {
	name      string
	arguments int
}{
	PacketCanDo:               {"CAN_DO", 1},
	PacketCantDo:              {"CANT_DO", 1},
	PacketResetAbilities:      {"RESET_ABILITIES", 0},
	PacketPreSleep:            {"PRE_SLEEP", 0},
	PacketNoop:                {"NOOP", 0},
	PacketSubmitJob:           {"SUBMIT_JOB", 3},
	PacketJobCreated:          {"JOB_CREATED", 1},
	PacketGrabJob:             {"GRAB_JOB", 0},
	PacketNoJob:               {"NO_JOB", 0},
	PacketJobAssign:           {"JOB_ASSIGN", 3},
	PacketWorkStatus:          {"WORK_STATUS", 3},
	PacketWorkComplete:        {"WORK_COMPLETE", 2},
	PacketWorkFail:            {"WORK_FAIL", 1},
	PacketGetStatus:           {"GET_STATUS", 1},
	PacketEchoReq:             {"ECHO_REQ", 1},
	PacketEchoRes:             {"ECHO_RES", 1},
	PacketSubmitJobBackground: {"SUBMIT_JOB_BG", 3},
	PacketError:               {"ERROR", 2},
	PacketStatusRes:           {"STATUS_RES", 5},
	PacketSubmitJobHigh:       {"SUBMIT_JOB_HIGH", 3},
	PacketSetClientID:         {"SET_CLIENT_ID", 1},
	PacketCanDoTimeout:        {"CAN_DO_TIMEOUT", 2},
	PacketAllYours:            {"ALL_YOURS", 0},
	PacketWorkException:       {"WORK_EXCEPTION", 2},
	PacketOptionReq:           {"OPTION_REQ", 1},
	PacketOptionRes:           {"OPTION_RES", 1},
	PacketWorkData:            {"WORK_DATA", 2},
	PacketWorkWarning:         {"WORK_WARNING", 2},
	PacketGrabJobUniq:         {"GRAB_JOB_UNIQ", 0},
	PacketJobAssignUniq:       {"JOB_ASSIGN_UNIQ", 4},
	PacketSubmitJobHighBG:     {"SUBMIT_JOB_HIGH_BG", 3},
	PacketSubmitJobLow:        {"SUBMIT_JOB_LOW", 3},
	PacketSubmitJobLowBG:      {"SUBMIT_JOB_LOW_BG", 3},
	PacketGrabJobAll:          {"GRAB_JOB_ALL", 0},
	PacketJobAssignAll:        {"JOB_ASSIGN_ALL", 5},
	PacketGetStatusUnique:     {"GET_STATUS_UNIQUE", 1},
	PacketStatusResUnique:     {"STATUS_RES_UNIQUE", 6},
	PacketMassDo:              {"MASS_DO", 1},
}

// String returns the protocol's name of the type, such as "WORK_COMPLETE".
func (t PacketType) String() string {
	if known, ok := packetTypes[t]; ok {
		return known.name
	}
	return fmt.Sprintf("packet type %d", uint32(t))
}

func (t PacketType) argumentCount() (count int, known bool) {
	entry, known := packetTypes[t]
	return entry.arguments, known
}
