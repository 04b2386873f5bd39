// Package parallel is for tests that wait more than they work.
package parallel

import (
	"flag"
	"strconv"
)

// Tests has so many parallel tests run at once, rather than one for each core, unless -test.parallel says otherwise. It is for TestMain.
func Tests(atOnce int) {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		_ = flag.Set("test.parallel", strconv.Itoa(atOnce))
	}
}
