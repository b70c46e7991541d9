//go:build unix

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	fault "github.com/downlink-go/downlink/client/internal/faultserver"
)

// command returns the command as a process of its own.
func (c *cli) command(stdout, stderr *bytes.Buffer, args ...string) *exec.Cmd {
	c.t.Helper()
	executable, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.CommandContext(c.t.Context(), executable, append(args, c.common...)...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.dir, stdout, stderr
	return cmd
}

// TestSignals ends a process in the middle of a download, in both ways, and has
// others go on from there.
func TestSignals(t *testing.T) {
	t.Parallel()
	data := pack(t, append(files(1), file{"outputs/c.tif", files(3)[0].content}, file{"outputs/d.tif", files(4)[0].content}))
	s := fault.Start(t, data, fault.Slow(64<<10, 10*time.Millisecond))
	c := newCLI(t, s)
	c.run("version")
	interrupt := func(signal os.Signal) (stderr string, err error) {
		var out, errs bytes.Buffer
		cmd := c.command(&out, &errs, "get", "W1", "J1", "-c", "1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		before, _ := os.ReadFile(c.path("W1_J1.zip.downlink"))
		for poll := time.NewTicker(5 * time.Millisecond); ; {
			<-poll.C
			// As soon as there is something to resume that was not there before.
			if now, err := os.ReadFile(c.path("W1_J1.zip.downlink")); err == nil && !bytes.Equal(now, before) {
				poll.Stop()
				break
			}
			select {
			case err := <-ended:
				t.Fatalf("it ended by itself: %v, %q", err, &errs)
			default:
			}
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		err = <-ended
		return errs.String(), err
	}

	_, err := interrupt(syscall.SIGKILL)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Success() {
		t.Fatalf("after SIGKILL: %v", err)
	}
	stderr, err := interrupt(os.Interrupt)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitInterrupted || !strings.Contains(stderr, "going on") {
		t.Fatalf("after SIGINT: %v, %q", err, stderr)
	}
	var out, errs bytes.Buffer
	if err := c.command(&out, &errs, "get", "W1", "J1").Run(); err != nil || out.String() != "W1_J1.zip\n" || !strings.Contains(errs.String(), "going on") {
		t.Fatalf("%v, %q, %q", err, &out, &errs)
	}
	c.wantFile("W1_J1.zip", data)
	if entries, err := os.ReadDir(c.dir); err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}
