package client

import (
	"bytes"
	"testing"
)

// FuzzReadManifest: whatever stands in a manifest, reading it ends, and sums that
// it gives are sums.
func FuzzReadManifest(f *testing.F) {
	for _, file := range withManifest(f, nil, tree()...) {
		if file.name == manifestName {
			f.Add(file.data)
		}
	}
	for _, s := range []string{
		"", "{", "[]", `{"entries":[{}]}`, `{"generator":"downlink","entries":[{"path":"a","size":-1,"crc32":"zz"}]}`,
		`{"entries":[{"path":"a"},{"path":"a","sha256":"00"}]}`, `{"entries":{},"entries":[]}`, "{\"\xff\":1}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		listed := 0
		ours, err := readManifest(bytes.NewReader(data), func(m *manifestEntry) error {
			listed++
			if _, _, sha, err := m.sums(); err == nil && sha != nil && len(sha) != 32 {
				t.Errorf("a SHA-256 of %d bytes", len(sha))
			}
			return nil
		})
		if err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
		if listed > len(data) {
			t.Errorf("%d entries in %d bytes, ours %t", listed, len(data), ours)
		}
	})
}
