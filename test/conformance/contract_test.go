//go:build linux

package conformance

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
)

// feature is something that a program may lack. What is listed in `missing` has its cases skipped.
type feature string

const (
	descriptions    feature = "set_description:"
	nodeClassLimits feature = "limits of node classes and jobs (maxBuilds)"
	orphanSweep     feature = "the orphan sweep"
	tlsToServers    feature = "TLS to Gearman servers"
	parameterFiles  feature = "parameters as files"
	retryBackoff    feature = "back-off and cap of retries"
)

var missing []feature

func (f feature) missing() bool { return slices.Contains(missing, f) }

func (f feature) need(t *testing.T) {
	t.Helper()
	if f != "" && f.missing() {
		t.Skip("needs " + string(f))
	}
}

// testCase is a case of section 7 that this suite tests.
type testCase struct {
	name string
	on   []*flavour
	// own cases break things that others share, so each has a world of its own, with these flags for the operator.
	own   bool
	flags []string
	// servers is how many Gearman servers a world of its own has; 0 means one.
	servers int
	needs   feature
	test    func(s *scene)
}

// cases of the suite, by the headings of section 7. Package testing starts parallel tests last come first, so those that take longest come last and
// the others run beside them.
func cases() []testCase {
	return slices.Concat(happyCases(), hostileCases(), registrationCases(), stopCases(), resultCases(), flowCases(), disconnectCases())
}

// TestConformance runs each case on each server it is for.
func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	suite := newSuite(t)
	shared := &worlds{suite: suite, t: t, made: map[*flavour]func() *world{}}
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, f := range c.on {
				t.Run(f.name, func(t *testing.T) {
					t.Parallel()
					c.needs.need(t)
					if !f.geard {
						gearmantest.NeedGearmand(t)
					}
					if c.own {
						c.test(newScene(t, c.name, suite.newWorld(t, f, max(c.servers, 1), c.flags...)))
					} else {
						c.test(newScene(t, c.name, shared.of(f)))
					}
				})
			}
		})
	}
}

// contract is every case of section 7, and the tests outside this suite that show it too, or instead: as PACKAGE:TEST.
var contract = []struct {
	heading string
	name    string
	here    bool
	also    []string
}{
	{"happy paths", "start-packet", true, []string{"gearmanbridge:TestStart"}},
	{"happy paths", "success", true, []string{"gearmanbridge:TestEnds", "test/e2e:TestGearmanTool"}},
	{"happy paths", "failure", true, []string{"gearmanbridge:TestEnds", "test/e2e:TestFailureIsAResult"}},
	{"happy paths", "late-url", true, nil},
	{"happy paths", "number-stable", true, []string{"gearmanbridge:TestRequeuedIsAdopted"}},
	{"happy paths", "number-monotonic", true, []string{"buildnumber:TestUncleanEndNeverRepeats", "test/e2e:TestNumbersAcrossRestarts"}},
	{"happy paths", "ascii-json", true, []string{"gearmanbridge:TestEncode"}},
	{"happy paths", "complete-nul", true, []string{"gearmanbridge/gearman:TestPacketBytes", "gearmanbridge/gearman:TestWorkerBytes"}},
	{"happy paths", "both-dialects", true, []string{"gearmanbridge:TestStopRunning", "test/e2e:TestStop"}},
	{"happy paths", "args-split", true, []string{"gearmanbridge/gearman:TestWorkerBytes"}},
	{"happy paths", "labels", true, []string{"gearmanbridge:TestPlan", "test/e2e:TestNodeClass"}},
	{"happy paths", "node-stats", true, []string{"gearmanbridge:TestDescribe"}},
	{"happy paths", "timer-params", true, nil},

	{"results", "infra-loss", true, []string{"controllers:TestDecideInfrastructureFailed"}},
	{"results", "no-hot-loop", true, nil},
	{"results", "bad-config-final", true, []string{"controllers:TestDecideNotStarted", "controllers:TestPodSecurity"}},
	{"results", "never-empty", true, []string{"controllers:TestVerdictsAreConsistent"}},
	{"results", "no-warning/exception", true, nil},
	{"results", "retry-limit", true, nil},

	{"stop", "stop-running", true, []string{"gearmanbridge:TestStopRunning", "test/e2e:TestStop"}},
	{"stop", "stop-before-pod", true, []string{"gearmanbridge:TestStopBeforeBuild", "controllers:TestStopBeforeThePodHasANode"}},
	{"stop", "stop-twice", true, []string{"gearmanbridge:TestStopRunning"}},
	{"stop", "stop-finished", true, []string{"gearmanbridge:TestStopOthers"}},
	{"stop", "stop-unknown", true, []string{"gearmanbridge:TestStopOthers"}},
	{"stop", "stop-wrong-number", true, []string{"gearmanbridge:TestStopOthers"}},
	{"stop", "stop-malformed", true, []string{"gearmanbridge:TestReadStopRefuses", "gearmanbridge:FuzzReadStop"}},
	{"stop", "stop-at-capacity", true, []string{"gearmanbridge:TestStopRunning"}},
	{"stop", "stop-other-manager", true, nil},
	{"stop", "stop-name-mismatch", true, []string{"gearmanbridge:TestStopOthers"}},
	{"stop", "describe-running", true, nil},
	{"stop", "describe-finished", true, nil},
	{"stop", "describe-aborting", true, nil},
	{"stop", "describe-hostile", true, nil},
	{"stop", "early-cancel", true, nil},

	{"registration", "register-visible", true, []string{"gearmanbridge:TestRegistration"}},
	{"registration", "add-wakes", true, []string{"gearmanbridge/gearman:TestAddedFunctionWakesSleeper", "gearmanbridge:TestAddedLater"}},
	{"registration", "cant-do-once", true, []string{"gearmanbridge/gearman:TestSessionProperties"}},
	{"registration", "reconnect-burst", true, []string{"gearmanbridge/gearman:TestServerRestart", "gearmanbridge/gearman:TestRegistrationIsABurst"}},
	{"registration", "only-standard-packets", true, []string{"gearmanbridge/gearman:TestOnlyStandardPackets"}},
	{"registration", "name-policy", true, []string{"gearmanbridge/gearman:TestValidFunctionName", "gearmanbridge:TestPlan"}},
	{"registration", "reserved", true, nil},

	{"disconnects", "G-drop", true, []string{"gearmanbridge:TestLostIsAbandoned"}},
	{"disconnects", "C-drop-adopt", true, []string{"gearmanbridge:TestRequeuedIsAdopted"}},
	{"disconnects", "C-drop-finished", true, []string{"gearmanbridge:TestRequeuedIsReplayed"}},
	{"disconnects", "stale-handle", true, []string{"gearmanbridge:TestStaleHandle", "gearmanbridge/gearman:TestHandleDiesWithItsConnection"}},
	{"disconnects", "server-down-long", true, []string{"gearmanbridge/gearman:TestServerRestart"}},
	{"disconnects", "zuul-gone", true, nil},
	{"disconnects", "half-open", true, []string{"gearmanbridge/gearman:TestHalfOpenConnectionIsGivenUp", "gearmanbridge/gearman:TestPausedGearmandIsGivenUp"}},
	{"disconnects", "operator-crash", true, []string{"test/e2e:TestOperatorKilledGearmand", "test/e2e:TestOperatorKilledGeard"}},
	{"disconnects", "graceful", true, []string{"gearmanbridge:TestDrain"}},
	{"disconnects", "two-replicas", true, nil},
	{"disconnects", "two-servers", true, nil},

	{"flow control", "cap", true, []string{"gearmanbridge:TestCapacity", "gearmanbridge/gearman:TestGeardOrdersByPriorityAcrossFunctions"}},
	{"flow control", "full-silent", true, []string{"gearmanbridge/gearman:TestFullWorkerIsSilent"}},
	{"flow control", "starvation", true, nil},
	{"flow control", "3000-functions", true, []string{"gearmanbridge/gearman:TestThreeThousandFunctions"}},

	{"hostile input", "args-not-json", true, []string{"gearmanbridge:TestReadParametersRefuses", "gearmanbridge:FuzzReadParameters"}},
	{"hostile input", "args-array", true, []string{"gearmanbridge:TestReadParametersRefuses"}},
	{"hostile input", "values", true, []string{"gearmanbridge:TestReadParameters"}},
	{"hostile input", "large-value", true, []string{"test/e2e:TestBadRequests"}},
	{"hostile input", "byte-exact", true, []string{"test/e2e:TestGearmanTool"}},
	{"hostile input", "dangerous-names", true, []string{"test/e2e:TestBadRequests"}},
	{"hostile input", "zuul-uuid", true, []string{"gearmanbridge:TestBuildName"}},
	{"hostile input", "unique", true, []string{"gearmanbridge:TestHostileUniques", "gearmanbridge:TestBuildNamesDiffer"}},
	{"hostile input", "paths-and-shell", true, nil},
	{"hostile input", "unlisted-function", true, []string{"gearmanbridge:TestRefusals"}},

	// Not of section 7, but of what else the contract asks for.
	{"further", "class-limit", true, nil},
	{"further", "reload", true, []string{"gearmanbridge:TestCeilingIsMoved", "controllers:TestCeilingIsMoved"}},
	{"further", "rolling-upgrade", true, nil},
	{"further", "drain-together", true, nil},
	{"further", "two-installations", true, nil},
	{"further", "leader-disconnected", true, nil},
	{"further", "cut-off", true, []string{"gearmanbridge:TestCutOffLeavesCommands", "gearmanbridge:TestCutOffGivesJobsBack"}},
	{"further", "tls", true, []string{"gearmanbridge/gearman:TestTLS"}},
}

// TestContractIsTested: a case of the contract without a test, and a test that is on no list, are both mistakes.
func TestContractIsTested(t *testing.T) {
	listed, tested := map[string]bool{}, map[string]bool{}
	for _, c := range cases() {
		if tested[c.name] {
			t.Errorf("two tests are called %s", c.name)
		}
		tested[c.name] = true
	}
	for _, entry := range contract {
		listed[entry.name] = true
		if entry.here != tested[entry.name] {
			t.Errorf("%s, %s: tested here is %v, expected %v", entry.heading, entry.name, tested[entry.name], entry.here)
		}
		if !entry.here && len(entry.also) == 0 {
			t.Errorf("%s, %s: no test", entry.heading, entry.name)
		}
		for _, reference := range entry.also {
			if err := testExists(reference); err != nil {
				t.Errorf("%s, %s: %v", entry.heading, entry.name, err)
			}
		}
	}
	for name := range tested {
		if !listed[name] {
			t.Errorf("%s is tested but is no case of the contract", name)
		}
	}
}

// testExists looks for PACKAGE:TEST in the sources.
func testExists(reference string) error {
	folder, test, _ := strings.Cut(reference, ":")
	files, err := filepath.Glob(filepath.Join("..", "..", folder, "*_test.go"))
	if err != nil {
		return err
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if bytes.Contains(source, []byte("\nfunc "+test+"(")) {
			return nil
		}
	}
	return fmt.Errorf("there is no test %s in %s", test, folder)
}
