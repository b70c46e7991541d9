package transfer_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"testing"

	"go.uber.org/goleak"

	fault "github.com/downlink-go/downlink/client/internal/faultserver"
	"github.com/downlink-go/downlink/client/internal/transfer"
)

// childURL and childPath make the test binary a process that fetches a file, to
// be killed.
const (
	childURL  = "TRANSFER_TEST_URL"
	childPath = "TRANSFER_TEST_PATH"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		if err := fetchAsChild(context.Background(), url, os.Getenv(childPath)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func fetchAsChild(ctx context.Context, url, path string) error {
	r, err := transfer.Open(ctx, transfer.Config{HTTP: http.DefaultClient}, transfer.Location{URL: url, ID: fault.ID})
	if err != nil {
		return err
	}
	p, err := transfer.OpenPartial(path, fault.ID, r.Version())
	if err != nil {
		return err
	}
	defer p.Close()
	if err := r.Fetch(ctx, p, transfer.FetchOptions{}); err != nil {
		return err
	}
	return p.Commit()
}
