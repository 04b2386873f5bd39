package gearman_test

import (
	"strings"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

type gearmandScript struct {
	arguments []string              // of the real gearmand
	configure func(*gearman.Server) // gives the embedded one the same options; nil for none
	acts      []act
}

func finishes(handle string) act {
	return does("worker", gearman.PacketWorkComplete, handle, "")
}

// gearmandScripts are played against the real and the embedded gearmand.
var gearmandScripts = map[string]gearmandScript{
	"NOOP only once until a grab": {acts: []act{
		registers("f"), grabs(), sleeps(),
		submits("f", "1"), submits("f", "2"), sleeps(), submits("f", "3"),
		grabs(), grabs(), grabs(), grabs(), sleeps(), submits("f", "4"),
	}},
	"NOOP only once even after another PRE_SLEEP": {acts: []act{
		registers("f"), does("other", gearman.PacketCanDo, "f"), sleeps(),
		submits("f", "1"), does("other", gearman.PacketGrabJobUniq), sleeps(), submits("f", "2"),
		does("other", gearman.PacketGrabJobUniq), grabs(), sleeps(), submits("f", "3"),
	}},
	"NOOP from PRE_SLEEP counts": {acts: []act{
		registers("f"), does("other", gearman.PacketCanDo, "f"), submits("f", "1"), sleeps(),
		does("other", gearman.PacketGrabJobUniq), submits("f", "2"), submits("f", "3"),
	}},
	"order of functions and priorities": {acts: []act{
		registers("a"), registers("b"),
		submits("a", "a1"), submits("b", "b1"),
		does("client", gearman.PacketSubmitJobLow, "b", "b2", ""), does("client", gearman.PacketSubmitJobHigh, "b", "b3", ""),
		does("client", gearman.PacketSubmitJobHigh, "a", "a2", ""), submits("a", "a3"),
		grabs(), grabs(), grabs(), grabs(), grabs(), grabs(), grabs(),
	}},
	"round robin": {arguments: []string{"--round-robin"}, configure: func(s *gearman.Server) { s.RoundRobin = true }, acts: []act{
		registers("a"), registers("b"), registers("c"),
		submits("a", "a1"), submits("a", "a2"), submits("a", "a3"),
		submits("b", "b1"), submits("b", "b2"), submits("c", "c1"),
		grabs(), grabs(), grabs(), grabs(), grabs(), grabs(), grabs(),
	}},
	"one worker woken at a time": {arguments: []string{"--worker-wakeup=1"}, configure: func(s *gearman.Server) { s.WorkerWakeup = 1 }, acts: []act{
		registers("f"), does("other", gearman.PacketCanDo, "f"), sleeps(), does("other", gearman.PacketPreSleep),
		submits("f", "1"), submits("f", "2"), submits("f", "3"),
	}},
	"equal jobs are one": {acts: []act{
		submits("f", "u"), does("second", gearman.PacketSubmitJob, "f", "u", "other payload"),
		submits("g", "u"), submits("f", ""), submits("f", ""),
		does("client", gearman.PacketSubmitJob, "f", "-", "same"), does("client", gearman.PacketSubmitJob, "f", "-", "same"),
		does("client", gearman.PacketSubmitJob, "f", "-", "different"),
		asks("status"), asks("show jobs"),
		registers("f"), grabs(), does("worker", gearman.PacketWorkData, "H:host:1", "news"), finishes("H:host:1"),
		submits("f", "u"),
	}},
	"uniques have 64 bytes": {acts: []act{
		submits("f", strings.Repeat("u", 64)), submits("f", strings.Repeat("u", 65)),
	}},
	"work and status": {acts: []act{
		registers("f"), submits("f", "1"), does("client", gearman.PacketGetStatus, "H:host:1"), grabs(),
		does("client", gearman.PacketGetStatus, "H:host:1"),
		does("worker", gearman.PacketWorkStatus, "H:host:1", "5", "100"), does("client", gearman.PacketGetStatus, "H:host:1"),
		does("worker", gearman.PacketWorkStatus, "H:host:1", "-1", "5000000000"), does("client", gearman.PacketGetStatus, "H:host:1"),
		does("worker", gearman.PacketWorkStatus, "H:host:1", "abc", "x"), does("client", gearman.PacketGetStatus, "H:host:1"),
		does("worker", gearman.PacketWorkWarning, "H:host:1", "oh"),
		does("client", gearman.PacketGetStatusUnique, "1"), does("client", gearman.PacketGetStatusUnique, "nope"),
		does("client", gearman.PacketGetStatus, "nope"), asks("status"), asks("workers"),
		finishes("H:host:1"), finishes("H:host:1"), asks("status"), does("client", gearman.PacketGetStatus, "H:host:1"),
	}},
	"whose job it is": {acts: []act{
		registers("f"), submits("f", "1"), finishes("H:host:1"), grabs(),
		does("other", gearman.PacketWorkComplete, "H:host:1", ""), does("other", gearman.PacketWorkFail, "H:host:7"),
		does("other", gearman.PacketWorkStatus, "H:host:7", "1", "2"), does("worker", gearman.PacketWorkFail, "H:host:1"),
	}},
	"exceptions": {acts: []act{
		registers("f"), submits("f", "1"), grabs(), does("worker", gearman.PacketWorkException, "H:host:1", "boom"),
		does("worker", gearman.PacketWorkFail, "H:host:1"),
		does("client", gearman.PacketOptionReq, "exceptions"), does("client", gearman.PacketOptionReq, "other"),
		submits("f", "2"), grabs(), does("worker", gearman.PacketWorkException, "H:host:2", "boom"),
	}},
	"lost worker": {acts: []act{
		registers("f"), submits("f", "1"), submits("f", "2"), grabs(),
		does("worker", gearman.PacketWorkStatus, "H:host:1", "5", "100"),
		does("other", gearman.PacketCanDo, "f"), does("other", gearman.PacketPreSleep), does("other", gearman.PacketGrabJobUniq), does("other", gearman.PacketGrabJobUniq),
		does("other", gearman.PacketPreSleep),
		hangsUp("worker"), asks("show jobs"), asks("status"), does("client", gearman.PacketGetStatus, "H:host:1"),
		does("other", gearman.PacketGrabJobUniq), does("other", gearman.PacketWorkComplete, "H:host:1", "done"),
	}},
	"lost worker's job goes to the tail": {acts: []act{
		registers("f"), submits("f", "1"), submits("f", "2"), submits("f", "3"), grabs(), hangsUp("worker"),
		registers("f"), grabs(), grabs(), grabs(), grabs(),
	}},
	"job retries": {arguments: []string{"--job-retries=2"}, configure: func(s *gearman.Server) { s.JobRetries = 2 }, acts: []act{
		registers("f"), submits("f", "1"), grabs(), hangsUp("worker"), asks("show jobs"),
		registers("f"), grabs(), hangsUp("worker"), asks("show jobs"), asks("status"),
	}},
	"CANT_DO requeues": {acts: []act{
		registers("f"), registers("g"), submits("f", "1"), submits("g", "2"), grabs(), grabs(),
		does("worker", gearman.PacketCantDo, "unknown"), does("worker", gearman.PacketCantDo, "f"), asks("show jobs"), asks("workers"),
		finishes("H:host:1"), does("worker", gearman.PacketResetAbilities), asks("show jobs"), finishes("H:host:2"), asks("status"),
		grabs(), registers("f"), grabs(),
	}},
	"double registration": {acts: []act{
		registers("f"), registers("f"), asks("status"), asks("workers"), does("worker", gearman.PacketCantDo, "f"), asks("status"),
	}},
	"cancel": {acts: []act{
		registers("f"), submits("f", "1"), submits("f", "2"), submits("f", "3"), grabs(),
		asks("cancel job H:host:2"), asks("show jobs"), asks("status"), does("client", gearman.PacketGetStatus, "H:host:2"),
		asks("cancel job H:host:1"), asks("show jobs"), does("client", gearman.PacketGetStatus, "H:host:1"), does("client", gearman.PacketGetStatusUnique, "1"),
		does("worker", gearman.PacketWorkData, "H:host:1", "late"), finishes("H:host:1"),
		grabs(), asks("show jobs"), asks("cancel job H:host:1"), asks("nonsense"),
	}},
	"lost client": {acts: []act{
		registers("f"), submits("f", "1"), submits("f", "2"), grabs(), hangsUp("client"), asks("show jobs"),
		does("second", gearman.PacketGetStatusUnique, "1"), does("second", gearman.PacketGetStatus, "H:host:1"),
		does("second", gearman.PacketSubmitJob, "f", "1", ""), does("second", gearman.PacketSubmitJob, "f", "2", ""),
		asks("show jobs"), finishes("H:host:1"), grabs(), asks("show jobs"),
	}},
	"lost client of a queued job wakes nobody": {acts: []act{
		registers("f"), submits("f", "1"), hangsUp("client"), sleeps(), grabs(), sleeps(),
	}},
	"background jobs": {acts: []act{
		registers("f"), does("client", gearman.PacketSubmitJobBackground, "f", "1", ""), does("client", gearman.PacketSubmitJobLowBG, "f", "2", ""),
		does("client", gearman.PacketSubmitJobHighBG, "f", "3", ""), hangsUp("client"), asks("show jobs"),
		grabs(), grabs(), grabs(), finishes("H:host:3"),
	}},
	"who waits for a background job": {acts: []act{
		registers("f"), does("client", gearman.PacketSubmitJobBackground, "f", "1", ""), asks("show jobs"),
		does("second", gearman.PacketGetStatusUnique, "1"), grabs(), asks("show jobs"), does("second", gearman.PacketGetStatusUnique, "1"),
		hangsUp("client"), asks("show jobs"), does("second", gearman.PacketGetStatusUnique, "1"), does("second", gearman.PacketGetStatus, "H:host:1"),
		does("client", gearman.PacketSubmitJob, "f", "1", ""), asks("show jobs"), does("second", gearman.PacketGetStatusUnique, "1"),
		hangsUp("client"), asks("show jobs"), does("second", gearman.PacketGetStatusUnique, "1"), finishes("H:host:1"),
	}},
	"cancelled background job": {acts: []act{
		registers("f"), does("client", gearman.PacketSubmitJobBackground, "f", "1", ""), grabs(), asks("cancel job H:host:1"), asks("show jobs"),
		does("client", gearman.PacketGetStatusUnique, "1"), finishes("H:host:1"),
	}},
	"cancelled, then its client lost": {acts: []act{
		registers("f"), submits("f", "1"), grabs(), asks("cancel job H:host:1"), asks("show jobs"), does("second", gearman.PacketGetStatusUnique, "1"),
		does("worker", gearman.PacketWorkData, "H:host:1", "late"), does("worker", gearman.PacketWorkStatus, "H:host:1", "1", "2"),
		does("second", gearman.PacketSubmitJob, "f", "1", ""), does("second", gearman.PacketGetStatusUnique, "1"),
		hangsUp("client"), asks("show jobs"), does("second", gearman.PacketGetStatusUnique, "1"),
		does("worker", gearman.PacketWorkFail, "H:host:1"), asks("show jobs"),
	}},
	"cancelled, then worker lost": {acts: []act{
		registers("f"), submits("f", "1"), grabs(), asks("cancel job H:host:1"), hangsUp("worker"), asks("show jobs"), registers("f"), grabs(),
		asks("show jobs"),
	}},
	"background after foreground": {acts: []act{
		registers("f"), submits("f", "1"), does("second", gearman.PacketSubmitJobBackground, "f", "1", ""), grabs(), asks("show jobs"),
		does("second", gearman.PacketGetStatusUnique, "1"), hangsUp("client"), asks("show jobs"), does("second", gearman.PacketGetStatusUnique, "1"),
		finishes("H:host:1"),
	}},
	"one of two clients lost": {acts: []act{
		registers("f"), submits("f", "1"), does("second", gearman.PacketSubmitJob, "f", "1", ""), grabs(), hangsUp("client"),
		asks("show jobs"), does("second", gearman.PacketGetStatusUnique, "1"), finishes("H:host:1"),
	}},
	"resubmitted while ignored and running": {acts: []act{
		registers("f"), submits("f", "1"), grabs(), hangsUp("client"), does("second", gearman.PacketSubmitJob, "f", "1", ""),
		asks("show jobs"), does("second", gearman.PacketGetStatusUnique, "1"),
		does("worker", gearman.PacketWorkData, "H:host:1", "news"), does("worker", gearman.PacketWorkFail, "H:host:1"),
		does("second", gearman.PacketSubmitJob, "f", "1", ""), grabs(),
	}},
	"resubmitted while ignored, then worker lost": {acts: []act{
		registers("f"), submits("f", "1"), grabs(), hangsUp("client"), does("second", gearman.PacketSubmitJob, "f", "1", ""),
		hangsUp("worker"), asks("show jobs"), does("second", gearman.PacketGetStatusUnique, "1"), registers("f"), grabs(), asks("show jobs"),
		does("second", gearman.PacketGetStatus, "H:host:1"), does("second", gearman.PacketSubmitJob, "f", "1", ""),
	}},
	"ignored job of a lost worker": {acts: []act{
		registers("f"), submits("f", "1"), grabs(), hangsUp("client"), asks("show jobs"), hangsUp("worker"), asks("show jobs"),
		registers("f"), grabs(), asks("show jobs"),
	}},
	"unique of two functions": {acts: []act{
		registers("f"), registers("g"), submits("f", "1"), submits("g", "1"), grabs(), does("second", gearman.PacketGetStatusUnique, "1"),
		grabs(), does("second", gearman.PacketGetStatusUnique, "1"), does("second", gearman.PacketGetStatusUnique, ""),
	}},
	"shapes of assignment": {acts: []act{
		does("worker", gearman.PacketCanDoTimeout, "f", "100"), submits("f", "1"), submits("f", "2"), submits("f", "3"),
		does("worker", gearman.PacketGrabJob), does("worker", gearman.PacketGrabJobAll), grabs(), grabs(),
	}},
	"client ids": {acts: []act{
		does("worker", gearman.PacketSetClientID, "name"), does("other", gearman.PacketSetClientID, strings.Repeat("n", 130)), asks("workers"),
	}},
	"what it does not expect": {acts: []act{
		does("worker", gearman.PacketAllYours), does("worker", gearman.PacketNoJob),
		{connection: "worker", packet: gearman.Packet{Response: true, Type: gearman.PacketNoop}},
		does("worker", gearman.PacketMassDo, "f"), does("other", gearman.PacketType(999), "x"),
	}},
}
