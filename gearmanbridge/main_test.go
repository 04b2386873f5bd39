package gearmanbridge

import (
	"time"
)

// patience bounds every wait of the tests.
const patience = 20 * time.Second
