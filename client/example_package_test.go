package client_test

import (
	"archive/zip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/downlink-go/downlink/client"
)

// exampleServer is an API with one package.
func exampleServer() *httptest.Server {
	var file strings.Builder
	z := zip.NewWriter(&file)
	for _, name := range []string{"inputs/scene.json", "outputs/ndvi.tif"} {
		w, err := z.Create(name)
		if err != nil {
			log.Fatal(err)
		}
		_, _ = io.WriteString(w, "the content of "+name)
	}
	if err := z.Close(); err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	mux.HandleFunc("PUT /v0/workflows/W1/jobs/J1/download", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"id":"P1","status":"ready","signed_url":"%s/signed.zip","workflowId":"W1"}`, s.URL)
	})
	mux.HandleFunc("GET /signed.zip", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(file.String()))
	})
	return s
}

// Open reads a package where it is: a file of it costs a request, and the rest
// is never fetched.
func ExampleClient_Open() {
	server := exampleServer()
	defer server.Close()
	c, err := client.New(server.URL, client.WithAPIKey("key"), client.WithHTTPClient(server.Client()))
	if err != nil {
		log.Fatal(err)
	}
	p, err := c.Open(context.Background(), "W1", "J1")
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()
	for e := range p.Entries() {
		fmt.Println(e.Name, e.Size)
	}
	content, err := fs.ReadFile(p, "outputs/ndvi.tif")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", content)
	// Output:
	// inputs/scene.json 32
	// outputs/ndvi.tif 31
	// the content of outputs/ndvi.tif
}

// Extract writes the files that are wanted. Run again, it fetches only what is
// missing or wrong.
func ExampleClient_Extract() {
	server := exampleServer()
	defer server.Close()
	c, err := client.New(server.URL, client.WithAPIKey("key"), client.WithHTTPClient(server.Client()))
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "results")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for range 2 {
		r, err := c.Extract(context.Background(), "W1", "J1", dir, client.WithInclude("outputs/**/*.tif"))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(r.Written, "written,", r.Kept, "kept")
	}
	content, err := os.ReadFile(filepath.Join(dir, "outputs", "ndvi.tif"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", content)
	// Output:
	// 1 written, 0 kept
	// 0 written, 1 kept
	// the content of outputs/ndvi.tif
}
