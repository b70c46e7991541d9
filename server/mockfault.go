package server

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/downlink-go/downlink/server/internal/madeup"
)

// MockFaultHeader is the header of a call in which a client asks a mock for
// faults: pending=3,slow=1MB. They hold for the call and for the signed URL that
// it answers with, instead of those of the job. [MockFaults] lists them.
const MockFaultHeader = "Downlink-Mock-Fault"

// faultKinds are what a mock can do wrong, in the order of the help text.
var faultKinds = []struct {
	name  string
	value string // what it takes, or empty
	help  string
}{
	{"pending", "K", "K calls are answered pending, without waiting, then one is not, and so on"},
	{"unknown-status", "K", `the same with "status": "queued", which the contract does not have`},
	{"429", "K", "the same with 429 and Retry-After"},
	{"503", "K", "the same with 503 and Retry-After"},
	{"expire", "N", "after N bytes of a signed URL the download is cut and the URL has expired (410)"},
	{"truncate", "N", "after N bytes of a signed URL the download is cut, once"},
	{"reset", "N", "the same, by a reset of the connection"},
	{"stall", "N", "the same, but the connection stays open and nothing more comes"},
	{"etag", "N", "after N bytes of a signed URL its ETag is another one, as if the file had been replaced"},
	{"no-range", "", "ranges are ignored: 200 and the whole file instead of 206"},
	{"slow", "N", "each download is sent at N bytes a second"},
}

// MockFaults returns the faults that a mock can make, one a line: its name, what
// value it takes, and what it does. Numbers of bytes may have a unit, as in 1MB.
//
// Faults of calls that are asked for together come one after the other: 429, 503,
// unknown-status, pending. Those of downloads come together. Calls that fail by
// themselves, as one for a failed job does, have none.
func MockFaults() string {
	var b strings.Builder
	for _, k := range faultKinds {
		name := k.name
		if k.value != "" {
			name += "=" + k.value
		}
		fmt.Fprintf(&b, "  %-18s%s\n", name, k.help)
	}
	return b.String()
}

// faultSpec has the values of the faults asked for, by name.
type faultSpec map[string]int64

// parseFaults reads faults such as pending=3,slow=1MB. A colon is as good as an
// equals sign.
func parseFaults(s string) (faultSpec, error) {
	spec := faultSpec{}
	for part := range strings.SplitSeq(s, ",") {
		name, value, given := cutFault(strings.TrimSpace(part))
		takes, known := "", false
		for _, k := range faultKinds {
			if k.name == name {
				takes, known = k.value, true
			}
		}
		_, twice := spec[name]
		switch {
		case !known:
			return nil, fmt.Errorf("unknown fault %q; there are %s", name, faultNames())
		case twice:
			return nil, fmt.Errorf("fault %s: given twice", name)
		case takes == "" && given:
			return nil, fmt.Errorf("fault %s takes no value", name)
		case takes == "":
			spec[name] = 1
			continue
		}
		parse, example := madeup.ParseSize, "1MB"
		if takes == "K" {
			parse, example = parseCount, "3"
		}
		n, err := parse(value)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("fault %s: want a number, such as %s=%s", name, name, example)
		}
		if n == 0 && (name == "slow" || takes == "K") {
			return nil, fmt.Errorf("fault %s: want 1 or more", name)
		}
		spec[name] = n
	}
	if len(spec) == 0 {
		return nil, errors.New("no fault")
	}
	return spec, nil
}

func parseCount(s string) (int64, error) { return strconv.ParseInt(s, 10, 32) }

func cutFault(s string) (name, value string, ok bool) {
	i := strings.IndexAny(s, "=:")
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func faultNames() string {
	var names []string
	for _, k := range faultKinds {
		names = append(names, k.name)
	}
	return strings.Join(names, ", ")
}
