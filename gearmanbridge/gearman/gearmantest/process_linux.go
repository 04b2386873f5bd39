package gearmantest

import "syscall"

// endWithParent keeps no process behind if the test binary is killed.
func endWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
