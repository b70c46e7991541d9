package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/downlink-go/downlink/client"
)

// Save is all that most programs need: it waits, downloads, resumes what an
// earlier run has left, and verifies.
func ExampleClient_Save() {
	server := exampleServer()
	defer server.Close()
	c, err := client.New(server.URL, client.WithAPIKey("key"), client.WithHTTPClient(server.Client()))
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	result, err := c.Save(ctx, "W1", "J1", filepath.Join(dir, "job.zip"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(filepath.Base(result.Path), result.ID, result.Verified)
	// Output: job.zip P1 true
}

// WaitUntilReady is for programs that hand the signed URL on, and want to know
// why there is none.
func ExampleClient_WaitUntilReady() {
	server := exampleServer()
	defer server.Close()
	c, err := client.New(server.URL, client.WithAPIKey("key"),
		client.WithHTTPClient(server.Client()), client.WithReadyTimeout(time.Minute))
	if err != nil {
		log.Fatal(err)
	}
	d, err := c.WaitUntilReady(context.Background(), "W1", "J1")
	if notReady, ok := errors.AsType[*client.NotReadyError](err); ok {
		log.Fatalf("try again later: %v", notReady)
	}
	if apiErr, ok := errors.AsType[*client.APIError](err); ok {
		log.Fatalf("%s, request %s", apiErr.Code, apiErr.RequestID)
	}
	if err != nil {
		log.Fatal(err)
	}
	handOn := string(d.SignedURL) // printed as it is, it does not show what makes it secret
	fmt.Println(d.ID, d.Status, handOn != "")
	// Output: P1 ready true
}

// DownloadJob is one call of the API, for programs that pace themselves.
func ExampleClient_DownloadJob() {
	server := exampleServer()
	defer server.Close()
	c, err := client.New(server.URL, client.WithAPIKey("key"), client.WithHTTPClient(server.Client()))
	if err != nil {
		log.Fatal(err)
	}
	d, err := c.DownloadJob(context.Background(), "W1", "J1")
	if err != nil {
		log.Fatal(err)
	}
	if d.Ready() {
		fmt.Println("ready")
	} else {
		fmt.Println("ask again after", d.RetryAfter)
	}
	// Output: ready
}
