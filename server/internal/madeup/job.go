package madeup

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/downlink-go/downlink/server/internal/download"
)

// Job describes a made-up job: groups of assets of one size each. The first asset
// is an input, the others are outputs.
type Job struct {
	WorkflowID, JobID string
	Status            download.JobStatus
	Groups            []Group
}

// Group is a number of assets and the size of each, in bytes.
type Group struct {
	Count int
	Size  int64
}

// maxAssets keeps a mistyped number from filling the memory.
const maxAssets = 1_000_000

// Parse reads a job such as W1/J1=20x200MB, W1/J2=1x5GB,3x20KB, W1/J3=running or
// W1/J4=failed.
func Parse(s string) (Job, error) {
	name, what, ok := strings.Cut(s, "=")
	if !ok {
		return Job{}, fmt.Errorf("job %q: want WORKFLOW/JOB=COUNTxSIZE, such as W1/J1=20x200MB", s)
	}
	j := Job{Status: download.JobSucceeded}
	var err error
	if j.WorkflowID, j.JobID, err = ParseName(name); err != nil {
		return Job{}, fmt.Errorf("job %q: %w", s, err)
	}
	if what == "running" || what == "failed" {
		j.Status = download.JobStatus(what)
		return j, nil
	}
	assets, total := 0, int64(0)
	for group := range strings.SplitSeq(what, ",") {
		count, size, ok := strings.Cut(group, "x")
		n, err := strconv.Atoi(count)
		if !ok || err != nil || n < 1 {
			return Job{}, fmt.Errorf("job %q: %q is not COUNTxSIZE, such as 20x200MB", s, group)
		}
		bytes, err := ParseSize(size)
		if err != nil {
			return Job{}, fmt.Errorf("job %q: %w", s, err)
		}
		if assets += n; n > maxAssets || assets > maxAssets {
			return Job{}, fmt.Errorf("job %q: more than %d assets", s, maxAssets)
		}
		if bytes > 0 && int64(n) > (math.MaxInt64-total)/bytes {
			return Job{}, fmt.Errorf("job %q: too large", s)
		}
		total += int64(n) * bytes
		j.Groups = append(j.Groups, Group{n, bytes})
	}
	return j, nil
}

// ParseName reads WORKFLOW/JOB.
func ParseName(s string) (workflowID, jobID string, err error) {
	workflowID, jobID, _ = strings.Cut(s, "/")
	if !download.IsIdentifier(workflowID) || !download.IsIdentifier(jobID) {
		return "", "", fmt.Errorf("%q is not WORKFLOW/JOB, each of 1 to 128 letters, digits or . _ ~ -", s)
	}
	return workflowID, jobID, nil
}

var units = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}, {"", 1},
}

// ParseSize reads a whole number of bytes, or of KB, MB, GB, TB, KiB, MiB, GiB or
// TiB.
func ParseSize(s string) (int64, error) {
	for _, u := range units {
		if len(s) <= len(u.suffix) || !strings.EqualFold(s[len(s)-len(u.suffix):], u.suffix) {
			continue
		}
		n, err := strconv.ParseInt(s[:len(s)-len(u.suffix)], 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.bytes {
			break
		}
		return n * u.bytes, nil
	}
	return 0, fmt.Errorf("%q is not a size, such as 500, 20KB, 200MB, 5GB or 1GiB", s)
}
