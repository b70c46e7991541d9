package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// newHealthCommand returns the command for health checks of containers, whose
// image has no other program.
func newHealthCommand() *cobra.Command {
	var (
		listen, admin, cert string
		ready               bool
		timeout             time.Duration
	)
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask the server on this machine whether it answers",
		Long: `Asks the server that runs on this machine with the same settings whether it
answers, and exits with 0 if it does and 1 if not. With an address for operators
it asks /healthz there. With --ready it asks /readyz, which also looks at the
database and the bucket: do not have a server restarted for those.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ready && admin == "" {
				return errors.New("--ready: needs --admin-listen, where the server tells that")
			}
			scheme, address, path := "http", listen, "/openapi.json"
			switch {
			case ready:
				address, path = admin, "/readyz"
			case admin != "":
				address, path = admin, "/healthz"
			case cert != "":
				scheme = "https"
			}
			if err := askHealth(cmd.Context(), scheme, address, path, timeout); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "localhost:8080", "address that the server listens on")
	f.StringVar(&admin, "admin-listen", "", "its address for operators (default none)")
	f.StringVar(&cert, "tls-cert", "", "its certificate, which says that it speaks HTTPS")
	f.BoolVar(&ready, "ready", false, "ask whether the server is ready, not only whether it is there")
	f.DurationVar(&timeout, "timeout", 3*time.Second, "wait so long for the answer")
	return cmd
}

func askHealth(ctx context.Context, scheme, address, path string, timeout time.Duration) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	switch ip := net.ParseIP(host); {
	case host == "" || ip.Equal(net.IPv4zero):
		host = "127.0.0.1" // a container may not know localhost
	case ip.Equal(net.IPv6unspecified):
		host = "::1"
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(host, port)+path, nil)
	if err != nil {
		return err
	}
	// The certificate is for another name than that of this machine, and nothing
	// is told to whoever answers.
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 1000)) // it may say more
		return fmt.Errorf("%s: status %d: %s", path, response.StatusCode, body)
	}
	return nil
}
