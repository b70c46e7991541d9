package server_test

import (
	"context"
	"fmt"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/downlink-go/downlink/client"
	"github.com/downlink-go/downlink/server"
)

// jobTable is a job database of somebody else's: which objects of the bucket
// belong to which job.
type jobTable map[[2]string][]string

// Job implements [server.Catalog]. An object without a version is looked up in
// the bucket, and one without a checksum is read once.
func (t jobTable) Job(_ context.Context, workflowID, jobID string) (server.Job, error) {
	keys, ok := t[[2]string{workflowID, jobID}]
	if !ok {
		return server.Job{}, server.ErrJobNotFound
	}
	job := server.Job{Status: server.JobSucceeded}
	for _, key := range keys {
		job.Assets = append(job.Assets, server.Asset{
			Role: server.Output, Path: filepath.Base(key), Object: server.Object{Key: key, Size: -1},
		})
	}
	return job, nil
}

// A program with a job database of its own plugs it in as the catalog. The
// assets stay objects of the bucket, wherever they are in it.
func Example_catalog() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bucket, state := filepath.Join(dir, "bucket"), filepath.Join(dir, "state")
	if err := os.MkdirAll(filepath.Join(bucket, "scenes", "2026"), 0o755); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bucket, "scenes", "2026", "ndvi.tif"), []byte("pixels"), 0o644); err != nil {
		log.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := server.New(ctx, server.Config{
		Bucket:  "file://" + filepath.ToSlash(bucket),
		DataDir: state,
		Catalog: jobTable{{"W1", "J1"}: {"scenes/2026/ndvi.tif"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = s.Close(ctx) }()
	hs := httptest.NewServer(s.Handler())
	defer hs.Close()

	// As downlinkd org create, grant and key create do.
	db, err := server.OpenDatabase(ctx, state, "")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.CreateOrganization(ctx, "acme"); err != nil {
		log.Fatal(err)
	}
	if err := db.Grant(ctx, "acme", "W1"); err != nil {
		log.Fatal(err)
	}
	_, key, err := db.CreateKey(ctx, "acme", "", time.Time{})
	if err != nil {
		log.Fatal(err)
	}

	c, err := client.New(hs.URL, client.WithAPIKey(string(key)))
	if err != nil {
		log.Fatal(err)
	}
	result, err := c.Save(ctx, "W1", "J1", filepath.Join(dir, "job.zip"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(filepath.Base(result.Path), result.Verified)
	// Output: job.zip true
}
