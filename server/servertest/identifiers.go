package servertest

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

// value is one that a path parameter is tried with.
type value struct {
	escaped string
	note    string
	valid   bool
	// mayNotRoute is set for those that a server may take for another path.
	mayNotRoute bool
}

// identifiers returns values for a path parameter: on the boundaries of its
// schema, such as break systems, and drawn at random from the characters around
// those that it admits, the same each time. The schema itself says which of them
// are valid.
func identifiers(schema *openapi3.Schema) []value {
	least, most := int(schema.MinLength), 128
	if schema.MaxLength != nil {
		most = int(*schema.MaxLength)
	}
	raw := []string{
		// Boundaries of the length.
		strings.Repeat("Z", max(0, least-1)), strings.Repeat("Z", least), strings.Repeat("Z", most), strings.Repeat("Z", most+1), strings.Repeat("Z", 4*most),
		// Each kind of character, first and later.
		"A", "z", "0", "9", "A.b", "A_b", "A~b", "A-b", "A..b", "A.", "A-", "A~", "A_", "0-._~", ".A", "_A", "~A", "-A", "--help",
		// Paths, and what is none.
		".", "..", "...", "a/b", "../a", `a\b`, "/", "a//b", "~", "con.", "C:",
		// What other languages would read.
		"a b", " a", "a ", "a+b", "a%b", "a%41", "a?b", "a#b", "a&b", "a=b", "a;b", "a:b", "a@b", "a,b", "a!b", "a*b", "a'b", `a"b`, "a`b", "a|b", "a<b>", "(a)", "[a]", "{a}", "$a", "a^b",
		// What is not printed, and what is not ASCII.
		"a\x00b", "\x00", "a\nb", "a\r\nb", "a\tb", "a\x7fb", "ü", "aü", "é", "日本", "a\u202eb", "a\ufeff", "\U0001f6f0", "a\xffb", "\xc3", "\xed\xa0\x80",
		// What is taken for something else.
		"null", "undefined", "true", "0x10", "1e9", "NaN",
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		b := make([]byte, 1+random.IntN(12))
		for i := range b {
			b[i] = byte(0x20 + random.IntN(0x60))
		}
		raw = append(raw, string(b))
	}
	const admitted = "ABCXYZabcxyz0189._~-"
	for range 20 {
		b := make([]byte, 1+random.IntN(most))
		for i := range b {
			b[i] = admitted[random.IntN(len(admitted))]
		}
		raw = append(raw, string(b))
	}
	values := make([]value, 0, len(raw)+2)
	for _, id := range raw {
		values = append(values, value{
			escaped:     url.PathEscape(id),
			note:        fmt.Sprintf("%.30q", id),
			valid:       schema.VisitJSON(id) == nil,
			mayNotRoute: id == "" || id == "." || id == ".." || strings.Contains(id, "/"),
		})
	}
	return append(values,
		value{escaped: "%2E%2E", note: "encoded dots", mayNotRoute: true},
		value{escaped: "%4A", note: "a letter that is encoded", valid: true},
	)
}
