package main

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/downlink-go/downlink/client"
	"github.com/downlink-go/downlink/server"
)

// TestMock runs the command and downloads from it.
func TestMock(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	out, stdout := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"mock", "--listen", "127.0.0.1:0", "--job", "W1/J1=2x1MB", "--fault", "W1/J1=truncate:1MB"}, stdout, io.Discard)
	}()
	line := make([]byte, 100)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	url := strings.TrimPrefix(strings.TrimSpace(string(line[:n])), "listening on ")
	c, err := client.New(url, client.WithAPIKey("any"))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := c.Extract(t.Context(), "W1", "J1", t.TempDir()); err != nil || r.Written != 3 {
		t.Errorf("extract: %+v, %v", r, err)
	}
	cancel()
	if code := <-done; code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

func TestMockUsage(t *testing.T) {
	t.Parallel()
	if help := mustRun(t, "mock", "--help"); !strings.Contains(help, server.MockFaults()) {
		t.Error("the help text does not list the faults")
	}
	_, stderr, code := command(t, "mock", "--fault", "W1/J1=boom")
	if code != exitUsage || !strings.Contains(stderr, `unknown fault "boom"; there are pending`) ||
		!strings.Contains(stderr, "Run 'downlinkd mock --help' for usage.") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
