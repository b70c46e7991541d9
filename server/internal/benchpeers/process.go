package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server that runs beside this program.
type process struct {
	cmd *exec.Cmd
	url string
	// Of downlinkd: an API key, and the folder of the state.
	key, state string
}

// startProcess starts a server and waits until it answers at the address.
func (b *bench) startProcess(ctx context.Context, address string, cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that an interrupt leaves it to stopAll
	if cmd.Stderr == nil {
		log, err := os.Create(filepath.Join(b.temp, filepath.Base(cmd.Path)+".log"))
		if err != nil {
			return nil, err
		}
		defer log.Close()
		cmd.Stderr = log
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, url: "http://" + address}
	b.running = append(b.running, p)
	return p, awaitAddress(ctx, address)
}

func awaitAddress(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing listens on %s: %w", address, err)
		case <-time.After(time.Millisecond):
		}
	}
}

// stopAll stops the servers, the youngest first.
func (b *bench) stopAll() error {
	var errs []error
	for len(b.running) > 0 {
		p := b.running[len(b.running)-1]
		b.running = b.running[:len(b.running)-1]
		errs = append(errs, p.stop())
	}
	return errors.Join(errs...)
}

func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_ = p.cmd.Wait() // how it ends is of no interest
	return nil
}

// cpu returns the CPU time of the process and its children so far.
func (p *process) cpu() time.Duration {
	const ticksPerSecond = 100 // USER_HZ, the same on all of Linux that Go runs on
	ticks := 0
	for _, pid := range p.family() {
		fields := statFields(pid)
		if len(fields) < 13 {
			continue
		}
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		ticks += user + system
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond
}

// memory returns the largest resident set so far, in bytes.
func (p *process) memory() int64 {
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(readFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid)))
	if m == nil {
		return 0
	}
	kilobytes, _ := strconv.ParseInt(m[1], 10, 64)
	return kilobytes << 10
}

// family returns the process and its children.
func (p *process) family() []int {
	pids := []int{p.cmd.Process.Pid}
	parent := strconv.Itoa(p.cmd.Process.Pid)
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		pid, _ := strconv.Atoi(filepath.Base(name))
		if fields := statFields(pid); len(fields) > 1 && fields[1] == parent {
			pids = append(pids, pid)
		}
	}
	return pids
}

// statFields returns the fields of /proc/PID/stat from the state on, which is
// the third: the name before it may hold anything.
func statFields(pid int) []string {
	stat := readFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
}

// startDownlinkd starts our server on a new state, with a key and a grant.
func (b *bench) startDownlinkd(ctx context.Context, flags ...string) (*process, error) {
	state, err := os.MkdirTemp(b.temp, "state-")
	if err != nil {
		return nil, err
	}
	return b.startDownlinkdOn(ctx, state, flags...)
}

// listening is what downlinkd prints.
var listening = regexp.MustCompile(`^listening on (https?)://(\S+)`)

// startDownlinkdOn does the same on a state that may exist.
func (b *bench) startDownlinkdOn(ctx context.Context, state string, flags ...string) (*process, error) {
	p, err := b.launch(ctx, state, flags...)
	if err != nil {
		return nil, err
	}
	administer := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, b.bin("downlinkd"), append(args, "--data-dir", state)...)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("downlinkd %s: %w", args[0], err)
		}
		return strings.TrimSpace(string(out)), nil
	}
	if orgs, err := administer("org", "list"); err != nil || !strings.Contains(orgs, "bench") {
		if _, err := administer("org", "create", "bench"); err != nil {
			return nil, err
		}
		if _, err := administer("grant", "bench", "bench"); err != nil {
			return nil, err
		}
	}
	p.key, err = administer("key", "create", "--org", "bench")
	return p, err
}

// launch starts downlinkd and returns once it listens.
func (b *bench) launch(ctx context.Context, state string, flags ...string) (*process, error) {
	log, err := os.Create(filepath.Join(b.temp, "downlinkd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, b.bin("downlinkd"), append([]string{"serve", "--bucket", "file://" + b.bucket(),
		"--data-dir", state, "--listen", "127.0.0.1:0", "--ready-wait", "60s", "--requests-per-minute", "0", "--max-downloads-per-key", "0"}, flags...)...)
	cmd.Stderr = log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, state: state}
	b.running = append(b.running, p)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	m := listening.FindStringSubmatch(line)
	if m == nil {
		return nil, fmt.Errorf("downlinkd did not start: %w\n%s", err, readFile(log.Name()))
	}
	p.url = m[1] + "://" + m[2]
	return p, nil
}

// call makes the call of the API for one job.
func (p *process) call(ctx context.Context, client *http.Client, job string) (signedURL string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, p.url+"/v0/workflows/bench/jobs/"+job+"/download", nil)
	if err != nil {
		return "", err
	}
	r.Header.Set("Authorization", p.key)
	response, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var body struct {
		Status    string `json:"status"`
		SignedURL string `json:"signed_url"`
	}
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("job %s: status %d", job, response.StatusCode)
	}
	return body.SignedURL, nil
}

// ready calls until the package is ready, and returns its URL.
func (p *process) ready(ctx context.Context, job string) (string, error) {
	client := newClient(1)
	defer client.CloseIdleConnections()
	for {
		url, err := p.call(ctx, client, job)
		if err != nil || url != "" {
			return url, err
		}
	}
}

// startNginx serves the finished packages as files, over TLS too.
func (b *bench) startNginx(ctx context.Context) (plain, secure *process, err error) {
	addresses, err := freeAddresses(2)
	if err != nil {
		return nil, nil, err
	}
	cert, key := b.cert()
	config := filepath.Join(b.temp, "nginx.conf")
	user := ""
	if os.Getuid() == 0 {
		user = "user root;" // or its workers could not read the user's cache
	}
	if err := os.WriteFile(config, fmt.Appendf(nil, `%[7]s
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx.log;
worker_processes auto;
events { worker_connections 1024; }
http {
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path %[1]s/body;
    proxy_temp_path %[1]s/proxy;
    fastcgi_temp_path %[1]s/fastcgi;
    uwsgi_temp_path %[1]s/uwsgi;
    scgi_temp_path %[1]s/scgi;
    server {
        listen %[2]s;
        listen %[3]s ssl;
        ssl_certificate %[4]s;
        ssl_certificate_key %[5]s;
        ssl_protocols TLSv1.2 TLSv1.3;
        root %[6]s;
    }
}
`, b.temp, addresses[0], addresses[1], cert, key, b.zips(), user), 0o644); err != nil {
		return nil, nil, err
	}
	plain, err = b.startProcess(ctx, addresses[0], exec.CommandContext(ctx, "nginx", "-c", config, "-e", filepath.Join(b.temp, "nginx.log")))
	if err != nil {
		return nil, nil, err
	}
	return plain, &process{cmd: plain.cmd, url: "https://" + addresses[1]}, nil
}

// startPeer starts one of the servers that this program is itself.
func (b *bench) startPeer(ctx context.Context, args ...string) (*process, error) {
	addresses, err := freeAddresses(1)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return b.startProcess(ctx, addresses[0], exec.CommandContext(ctx, self, append([]string{peerCommand, addresses[0]}, args...)...))
}

// freeAddresses returns addresses on which nothing listens.
func freeAddresses(n int) ([]string, error) {
	addresses := make([]string, n)
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it takes no time
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addresses[i] = l.Addr().String()
	}
	return addresses, nil
}
