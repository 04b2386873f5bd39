//go:build !linux

package gearmantest

import "syscall"

func endWithParent() *syscall.SysProcAttr { return nil }
