package gearmantest

import (
	"testing"
	"time"
)

// Eventually waits until condition is true, at most within, and ends the test
// if it does not become so. what completes the sentence "never saw …".
func Eventually(t testing.TB, within time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("never saw %s within %v", what, within)
		}
		time.Sleep(pollInterval)
	}
}
