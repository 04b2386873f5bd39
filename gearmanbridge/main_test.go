package gearmanbridge

import (
	"testing"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

// patience bounds every wait of the tests.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard()) // each test has a logger of its own
	apiserver.Main(m)
}
