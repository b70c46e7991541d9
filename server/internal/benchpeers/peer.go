package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
)

// peerCommand makes this program one of the servers: it takes the address, what
// to be, and a folder.
const peerCommand = "peer"

// servePeer is a server written in Go that does no more than it must: it answers
// the call with a constant, or serves a folder.
func servePeer(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errors.New("usage: benchpeers peer ADDRESS net/http | echo | files FOLDER")
	}
	const answer = `{"id":"425fdc47-ea08-5b82-83e4-58473f1541cd","signed_url":"http://127.0.0.1:8080/packages/token/W1_J1.zip","status":"ready","workflowId":"W1"}`
	var handler http.Handler
	switch args[1] {
	case "net/http":
		mux := http.NewServeMux()
		mux.HandleFunc("PUT /v0/workflows/{workflow_id}/jobs/{job_id}/download", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(answer)) // a client that is gone is of no interest
		})
		handler = mux
	case "echo":
		e := echo.New()
		e.PUT("/v0/workflows/:workflow_id/jobs/:job_id/download", func(c echo.Context) error {
			return c.JSONBlob(http.StatusOK, []byte(answer))
		})
		handler = e
	case "files":
		handler = http.FileServer(http.Dir(args[2]))
	default:
		return errors.New("no such peer: " + args[1])
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	return s.Serve(listener)
}
