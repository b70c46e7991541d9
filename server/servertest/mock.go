package servertest

import (
	"context"
	"net"
	"testing"

	"github.com/downlink-go/downlink/server"
)

// New runs a mock of the API on loopback until the test ends, and returns its
// base URL. It is the server of "downlinkd mock": made-up jobs of any size, and
// the faults that [server.MockFaults] lists, of a job or of a single call:
//
//	url := servertest.New(t, server.MockConfig{
//		Jobs:   []string{"W1/J1=20x200MB"},
//		Faults: []string{"W1/J1=pending:2,truncate:1MB"},
//	})
func New(t testing.TB, config server.MockConfig) string {
	t.Helper()
	m, err := server.NewMock(config)
	if err != nil {
		t.Fatalf("servertest: %v", err)
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("servertest: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("servertest: %v", err)
		}
	})
	return "http://" + listener.Addr().String()
}
