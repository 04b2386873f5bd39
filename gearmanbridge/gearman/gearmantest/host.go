package gearmantest

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
)

var hosts atomic.Uint32

// ownHost is an address of the loopback interface for one server. A server that starts again wants the port it had, which on 127.0.0.1 any connection of
// this machine, or another test's server, may have been given meanwhile. Linux alone has more than that one.
func ownHost() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1"
	}
	const usable = 254 // 1 to 254
	process := uint32(os.Getpid())
	return fmt.Sprintf("127.%d.%d.%d", 1+process/usable%usable, 1+process%usable, 1+hosts.Add(1)%usable)
}
