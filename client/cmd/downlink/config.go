package main

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/downlink-go/downlink/client"
)

// apiFlags adds the flags of every command that calls the API.
func (a *app) apiFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&a.url, "url", "", "base URL of the API (env DOWNLINK_URL, default "+client.DefaultBaseURL+")")
	f.StringVar(&a.keyFile, "api-key-file", "", "file that holds the API key (env DOWNLINK_API_KEY_FILE)")
	f.DurationVar(&a.wait, "wait", time.Hour, "how long the package may take to become ready")
	f.DurationVar(&a.retryFor, "retry-for", 5*time.Minute, "how long to repeat requests that get nowhere")
	f.DurationVar(&a.stall, "stall", 30*time.Second, "how long a connection may send nothing")
}

// client returns a client as the flags and the environment have it.
func (a *app) client() (*client.Client, error) {
	base := a.url
	if base == "" {
		base = os.Getenv("DOWNLINK_URL")
	}
	key, err := a.apiKey()
	if err != nil {
		return nil, err
	}
	c, err := client.New(base, client.WithAPIKey(key),
		client.WithReadyTimeout(a.wait), client.WithRetryBudget(a.retryFor), client.WithStallTimeout(a.stall))
	if err != nil {
		return nil, &usageError{err}
	}
	if u, err := url.Parse(base); err == nil && u.Scheme == "http" && key != "" && !loopback(u.Hostname()) {
		a.note("warning: the API key goes to %s unencrypted; use https", u.Host)
	}
	return c, nil
}

func (a *app) apiKey() (string, error) {
	if key := os.Getenv("DOWNLINK_API_KEY"); key != "" && a.keyFile == "" {
		return key, nil
	}
	file := a.keyFile
	if file == "" {
		file = os.Getenv("DOWNLINK_API_KEY_FILE")
	}
	if file == "" {
		return "", nil // the API will say that it wants one
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", &usageError{fmt.Errorf("API key: %w", err)}
	}
	key := strings.TrimSpace(string(data))
	if key == "" {
		return "", &usageError{fmt.Errorf("API key: %s is empty", file)}
	}
	return key, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
