// Command benchpeers measures downlinkd beside what people would use instead, on
// the same data, on this machine, in turns, and prints one table: medians, ratios
// and the CPU time of the servers. Programs that are not installed are left out
// and named.
//
//	go run ./server/internal/benchpeers -size 4 -rounds 3
//
// The data is made once, in the user's cache directory. It needs Linux, for the
// CPU time and the memory of processes.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchpeers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin *os.File, stdout io.Writer) (err error) {
	if len(args) > 0 && args[0] == peerCommand {
		return servePeer(ctx, args[1:])
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	flags := flag.NewFlagSet("benchpeers", flag.ContinueOnError)
	size := flags.Float64("size", 4, "size of the large package in GB; the number of small files goes with it")
	rounds := flags.Int("rounds", 3, "how often each server takes its turn")
	only := flags.String("only", "", "measure just what matches this regular expression")
	dir := flags.String("dir", filepath.Join(cache, "downlink-bench"), "folder for the data, kept for the next time")
	yes := flags.Bool("yes", false, "do not ask before the data is made")
	if err := flags.Parse(args); err != nil {
		return err
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if *size <= 0 || *rounds < 1 {
		return errors.New("-size and -rounds must be positive")
	}
	temp, err := os.MkdirTemp("", "benchpeers-")
	if err != nil {
		return err
	}
	b := &bench{scale: *size / 4, rounds: *rounds, data: filepath.Join(*dir, fmt.Sprintf("%gGB", *size)), temp: temp}
	defer func() { err = errors.Join(err, b.stopAll(), os.RemoveAll(temp)) }()
	if err := b.prepare(ctx, stdin, *yes); err != nil {
		return err
	}
	for _, s := range scenarios {
		if !pattern.MatchString(s.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s ...\n", s.name)
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := b.stopAll(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	b.print(stdout)
	return nil
}

// scenarios are the groups of rows of the table.
var scenarios = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"large", (*bench).large},
	{"tls", (*bench).largeTLS},
	{"small", (*bench).small},
	{"ranges", (*bench).ranges},
	{"put", (*bench).put},
	{"ready", (*bench).ready},
	{"memory", (*bench).memory},
	{"start", (*bench).start},
	{"client", (*bench).client},
	{"binary", (*bench).binary},
}

// bench is one run.
type bench struct {
	scale  float64
	rounds int
	data   string // what is kept: the bucket, the finished packages, a certificate
	temp   string // what is not: programs, state, configuration

	running []*process
	rows    []row
	missing []string // programs that are not installed
}

// row is a line of the table.
type row struct {
	what, ours, theirs, ratio, cpu, target string
	hit                                    bool
}

func (b *bench) add(r row) { b.rows = append(b.rows, r) }

func (b *bench) print(w io.Writer) {
	fmt.Fprintf(w, "%s, %s, %d cores, %s, %s; data of %.1f GB, median of %d\n\n", time.Now().UTC().Format(time.DateOnly),
		firstMatch("/proc/cpuinfo", `model name\s*: (.*)`), runtime.NumCPU(), strings.TrimSpace(readFile("/proc/sys/kernel/osrelease")),
		runtime.Version(), 4*b.scale, b.rounds)
	fmt.Fprintln(w, "| what | downlink | peer | ratio | CPU s/GB, ours : peer's | target | |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|")
	for _, r := range b.rows {
		verdict := "hit"
		switch {
		case r.target == "":
			verdict = ""
		case !r.hit:
			verdict = "**miss**"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", r.what, r.ours, r.theirs, r.ratio, r.cpu, r.target, verdict)
	}
	if len(b.missing) > 0 {
		fmt.Fprintf(w, "\nNot installed, and so left out: %s (see make bench-deps)\n", strings.Join(b.missing, ", "))
	}
}

// have reports whether a program is installed, and notes it if it is not.
func (b *bench) have(program string) bool {
	if _, err := exec.LookPath(program); err == nil {
		return true
	}
	for _, m := range b.missing {
		if m == program {
			return false
		}
	}
	b.missing = append(b.missing, program)
	return false
}

func readFile(name string) string {
	data, _ := os.ReadFile(name) // it is only shown
	return string(data)
}

func firstMatch(file, pattern string) string {
	m := regexp.MustCompile(pattern).FindStringSubmatch(readFile(file))
	if m == nil {
		return "unknown CPU"
	}
	return m[1]
}

// confirm asks on a terminal; elsewhere nobody is there to answer.
func confirm(stdin *os.File, question string) bool {
	info, err := stdin.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return true
	}
	fmt.Fprintf(os.Stderr, "%s [y/N] ", question)
	answer, _ := bufio.NewReader(stdin).ReadString('\n')
	return strings.EqualFold(strings.TrimSpace(answer), "y")
}
