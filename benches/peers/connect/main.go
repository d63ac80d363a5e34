// Redpanda Connect with no more than the parts that kafka.yaml needs.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/redpanda-data/benthos/v4/public/service"

	_ "github.com/redpanda-data/benthos/v4/public/components/io"
	_ "github.com/redpanda-data/benthos/v4/public/components/pure"
	_ "github.com/redpanda-data/connect/v4/public/components/kafka"
)

func main() {
	// Rarer collections: a sixth less work per message than with Go's default of 100.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	service.RunCLI(context.Background())
}
