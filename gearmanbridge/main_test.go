package gearmanbridge

import (
	"testing"
	"time"

	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

// patience bounds every wait of the tests.
const patience = 20 * time.Second

func TestMain(m *testing.M) { apiserver.Main(m) }
