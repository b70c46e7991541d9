// Command benchclient compares "downlink get" with curl, side by side: both fetch
// one package from the same server on this machine, in turns. It prints the
// throughput, the CPU time and the memory of each, and what listing a package of
// many entries costs.
//
//	go run ./client/internal/benchclient -size 4 -rounds 3
package main

import (
	"archive/zip"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchclient:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("benchclient", flag.ContinueOnError)
	gigabytes := flags.Float64("size", 4, "size of the package in GB")
	files := flags.Int("files", 20, "how many files are in it")
	rounds := flags.Int("rounds", 3, "how often each downloads it")
	entries := flags.Int("entries", 100_000, "how many files the package has that is listed")
	sha := flags.Bool("sha256", false, "have SHA-256 in the manifest, which downlink then checks too")
	connections := flags.String("connections", "4", "how many connections downlink uses")
	dir := flags.String("dir", "", "folder to work in, with room for two packages (default a temporary one)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		temp, err := os.MkdirTemp("", "benchclient-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(temp) }() // of this run alone
		*dir = temp
	}
	b := &bench{dir: *dir, stdout: stdout, downlink: filepath.Join(*dir, "downlink")}
	if err := command(ctx, "go", "build", "-trimpath", "-ldflags=-s", "-o", b.downlink, "github.com/downlink-go/downlink/client/cmd/downlink").Run(); err != nil {
		return fmt.Errorf("build downlink: %w", err)
	}
	if err := b.download(ctx, int64(*gigabytes*1e9)/int64(*files), *files, *rounds, *sha, *connections); err != nil {
		return err
	}
	return b.list(ctx, *entries)
}

// bench is one run.
type bench struct {
	dir      string
	downlink string // the command
	stdout   io.Writer
}

// command returns a command that shows what it complains about.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	return cmd
}

// sample is what one run of a command took.
type sample struct {
	wall, cpu time.Duration
	memory    int64 // bytes, 0 where the system does not say
}

func measure(cmd *exec.Cmd) (sample, error) {
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return sample{}, fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
	}
	return sample{
		wall:   time.Since(began),
		cpu:    cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(),
		memory: maxMemory(cmd.ProcessState),
	}, nil
}

// median takes that of each value.
func median(samples []sample) sample {
	middle := func(value func(sample) int64) int64 {
		var values []int64
		for _, s := range samples {
			values = append(values, value(s))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return sample{
		wall:   time.Duration(middle(func(s sample) int64 { return int64(s.wall) })),
		cpu:    time.Duration(middle(func(s sample) int64 { return int64(s.cpu) })),
		memory: middle(func(s sample) int64 { return s.memory }),
	}
}

// download compares the two.
func (b *bench) download(ctx context.Context, fileSize int64, files, rounds int, sha bool, connections string) error {
	name := filepath.Join(b.dir, "package.zip")
	if err := writePackage(name, files, fileSize, sha); err != nil {
		return fmt.Errorf("write the package: %w", err)
	}
	s, err := serve(ctx, name)
	if err != nil {
		return err
	}
	defer s.close()

	target := filepath.Join(b.dir, "W1_J1.zip")
	contenders := []struct {
		name    string
		command func() *exec.Cmd
	}{
		{"curl", func() *exec.Cmd { return command(ctx, "curl", "-sSf", "-o", target, s.packageURL()) }},
		{"curl, then sync", func() *exec.Cmd {
			return command(ctx, "sh", "-c", `curl -sSf -o "$0" "$1" && sync "$0"`, target, s.packageURL())
		}},
		{"downlink get --no-verify", func() *exec.Cmd { return b.get(ctx, s, target, "--no-verify", "-c", connections) }},
		{"downlink get", func() *exec.Cmd { return b.get(ctx, s, target, "-c", connections) }},
	}
	samples := make([][]sample, len(contenders))
	for range rounds {
		for i, c := range contenders {
			if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			got, err := measure(c.command())
			if err != nil {
				return err
			}
			samples[i] = append(samples[i], got)
		}
	}
	baseline := median(samples[0])
	bytes := float64(s.size)
	fmt.Fprintf(b.stdout, "%.2f GB in %d files, sha256 in the manifest: %t, median of %d\n", bytes/1e9, files, sha, rounds)
	fmt.Fprintf(b.stdout, "%-26s %8s %8s %9s %8s %9s\n", "", "MB/s", "to curl", "CPU s/GB", "to curl", "memory MB")
	for i, c := range contenders {
		m := median(samples[i])
		fmt.Fprintf(b.stdout, "%-26s %8.0f %8.2f %9.2f %8.2f %9.0f\n", c.name,
			bytes/1e6/m.wall.Seconds(), baseline.wall.Seconds()/m.wall.Seconds(),
			m.cpu.Seconds()/(bytes/1e9), m.cpu.Seconds()/baseline.cpu.Seconds(), float64(m.memory)/1e6)
	}
	return errors.Join(os.Remove(target), os.Remove(name))
}

func (b *bench) get(ctx context.Context, s *server, target string, args ...string) *exec.Cmd {
	return command(ctx, b.downlink, append([]string{"get", "--url", s.url, "--quiet", "-o", target, "W1", "J1"}, args...)...)
}

// list counts what a listing costs.
func (b *bench) list(ctx context.Context, entries int) error {
	name := filepath.Join(b.dir, "many.zip")
	if err := writePackage(name, entries, 20, true); err != nil {
		return fmt.Errorf("write the package: %w", err)
	}
	s, err := serve(ctx, name)
	if err != nil {
		return err
	}
	defer s.close()
	directory, err := directorySize(name)
	if err != nil {
		return err
	}
	cmd := command(ctx, b.downlink, "ls", "--url", s.url, "W1", "J1")
	m, err := measure(cmd)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.stdout, "listing %d entries: %d requests to the API and %d to the data host, %.2f times the directory, %s, %.0f MB of memory\n",
		entries, s.calls.Load(), s.requests.Load(), float64(s.sent.Load())/float64(directory), m.wall.Round(time.Millisecond), float64(m.memory)/1e6)
	return os.Remove(name)
}

// directorySize returns how many bytes come after the content.
func directorySize(name string) (int64, error) {
	z, err := zip.OpenReader(name)
	if err != nil {
		return 0, err
	}
	defer z.Close()
	info, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	last := z.File[len(z.File)-1]
	offset, err := last.DataOffset()
	return info.Size() - offset - int64(last.CompressedSize64), err
}

// writePackage writes a package as downlinkd lays it out.
func writePackage(name string, files int, size int64, sha bool) error {
	block := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(block)
	content := func(file int) io.Reader { // another one for each file
		head := fmt.Appendf(nil, "%016d", file)
		return io.LimitReader(io.MultiReader(strings.NewReader(string(head)), &repeater{block: block}), size)
	}
	type entry struct {
		Path   string `json:"path"`
		Size   int64  `json:"size"`
		CRC32  string `json:"crc32"`
		SHA256 string `json:"sha256,omitempty"`
	}
	entries := make([]entry, files)
	crcs := make([]uint32, files)
	for i := range entries {
		crc, sum := crc32.NewIEEE(), sha256.New()
		w := io.Writer(crc)
		if sha {
			w = io.MultiWriter(crc, sum)
		}
		if _, err := io.Copy(w, content(i)); err != nil {
			return err
		}
		crcs[i] = crc.Sum32()
		entries[i] = entry{Path: fmt.Sprintf("outputs/%06d.tif", i), Size: size, CRC32: fmt.Sprintf("%08x", crcs[i])}
		if sha {
			entries[i].SHA256 = hex.EncodeToString(sum.Sum(nil))
		}
	}
	manifest, err := json.Marshal(map[string]any{
		"job": map[string]string{"workflow_id": "W1", "job_id": "J1"}, "package_id": packageID, "entries": entries,
	})
	if err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 1<<20)
	z := zip.NewWriter(buffered)
	add := func(path string, crc uint32, n int64, content io.Reader) error {
		w, err := z.CreateRaw(&zip.FileHeader{
			Name: path, Method: zip.Store, CRC32: crc, ModifiedDate: 0x5c21, //nolint:staticcheck // CreateRaw looks at no other
			CompressedSize64: uint64(n), UncompressedSize64: uint64(n),
		})
		if err != nil {
			return err
		}
		_, err = io.Copy(w, content)
		return err
	}
	if err := add("manifest.json", crc32.ChecksumIEEE(manifest), int64(len(manifest)), strings.NewReader(string(manifest))); err != nil {
		return err
	}
	for i, e := range entries {
		if err := add(e.Path, crcs[i], size, content(i)); err != nil {
			return err
		}
	}
	// To the disk now, or that is part of what is measured.
	return errors.Join(z.Close(), buffered.Flush(), f.Sync())
}

// repeater repeats a block without end.
type repeater struct {
	block []byte
	at    int
}

func (r *repeater) Read(p []byte) (int, error) {
	n := copy(p, r.block[r.at:])
	r.at = (r.at + n) % len(r.block)
	return n, nil
}

const packageID = "1b4e28ba-2fa1-51d2-883f-0016d3cca427"

// server is the API and the data host for one package.
type server struct {
	url  string
	size int64

	calls, requests, sent atomic.Int64

	http *http.Server
	done sync.WaitGroup
}

func serve(ctx context.Context, name string) (*server, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{url: "http://" + listener.Addr().String(), size: info.Size()}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v0/workflows/{workflow}/jobs/{job}/download", func(w http.ResponseWriter, _ *http.Request) {
		s.calls.Add(1)
		w.Header().Set("Downlink-Package-Size", fmt.Sprint(s.size))
		_ = json.NewEncoder(w).Encode(map[string]string{"id": packageID, "status": "ready", "signed_url": s.packageURL(), "workflowId": "W1"})
	})
	mux.HandleFunc("GET /package.zip", func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		w.Header().Set("ETag", `"1"`)
		http.ServeFile(&counter{ResponseWriter: w, sent: &s.sent}, r, name)
	})
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	s.done.Go(func() { _ = s.http.Serve(listener) })
	return s, nil
}

func (s *server) packageURL() string { return s.url + "/package.zip" }

func (s *server) close() {
	s.http.Close()
	s.done.Wait()
}

// counter counts what is sent, and leaves sendfile(2) to net/http.
type counter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c *counter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, r)
	c.sent.Add(n)
	return n, err
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.sent.Add(int64(n))
	return n, err
}
