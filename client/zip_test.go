package client

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Nothing goes on after the call that began it.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTime is when the files of the tests were modified. A ZIP has even seconds.
var testTime = time.Date(2026, 3, 4, 5, 6, 8, 0, time.UTC)

// testFile is a file of a test's ZIP.
type testFile struct {
	name string
	data []byte
	// change, if set, makes a header that does not fit the data.
	change func(*zip.FileHeader)
}

func text(name, data string) testFile { return testFile{name: name, data: []byte(data)} }

// storedZip is what downlinkd writes: stored, with sizes and CRC-32 in front.
func storedZip(t testing.TB, files ...testFile) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		h := &zip.FileHeader{Name: f.name, Method: zip.Store, CRC32: crc32.ChecksumIEEE(f.data)}
		h.UncompressedSize64, h.CompressedSize64 = uint64(len(f.data)), uint64(len(f.data))
		h.ModifiedDate, h.ModifiedTime = dosDateTime(testTime) //nolint:staticcheck // CreateRaw looks at no other
		if f.change != nil {
			f.change(h)
		}
		w, err := z.CreateRaw(h)
		if err == nil {
			_, err = w.Write(f.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func dosDateTime(at time.Time) (date, clock uint16) {
	return uint16(at.Day() + int(at.Month())<<5 + (at.Year()-1980)<<9), uint16(at.Second()/2 + at.Minute()<<5 + at.Hour()<<11)
}

// deflatedZip is what others may write: deflated, with data descriptors behind.
func deflatedZip(t testing.TB, files ...testFile) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		w, err := z.CreateHeader(&zip.FileHeader{Name: f.name, Method: zip.Deflate, Modified: testTime})
		if err == nil {
			_, err = w.Write(f.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// damage changes a byte of the file's content as it is in the ZIP.
func damage(t testing.TB, data []byte, name string) []byte {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range z.File {
		if f.Name == name {
			at, err := f.DataOffset()
			if err != nil {
				t.Fatal(err)
			}
			data = bytes.Clone(data)
			data[at+int64(f.CompressedSize64)/2] ^= 1
			return data
		}
	}
	t.Fatalf("no %s in the ZIP", name)
	return nil
}

// withManifest puts a manifest in front that lists the files, after edit.
func withManifest(t testing.TB, edit func([]map[string]any) []map[string]any, files ...testFile) []testFile {
	t.Helper()
	var entries []map[string]any
	for _, f := range files {
		sha := sha256.Sum256(f.data)
		entries = append(entries, map[string]any{
			"path": f.name, "role": "output", "size": len(f.data), "media_type": "image/tiff", "original_path": "?",
			"crc32": fmt.Sprintf("%08x", crc32.ChecksumIEEE(f.data)), "sha256": hex.EncodeToString(sha[:]),
			"modified": testTime.Add(time.Second).Format(time.RFC3339),
		})
	}
	if edit != nil {
		entries = edit(entries)
	}
	manifest, err := json.Marshal(map[string]any{
		"job": map[string]string{"workflow_id": "W1", "job_id": "J1"}, "package_id": "P1", "entries": entries, "later": []int{1},
	})
	if err != nil {
		t.Fatal(err)
	}
	return append([]testFile{{name: manifestName, data: manifest}}, files...)
}

// memorySource is a package in memory that counts what is asked of it.
type memorySource struct {
	data []byte
	// read, if set, is called before each Read of a body.
	read func()

	mu       sync.Mutex
	requests int
	asked    int64
	open     int // bodies that are not closed
}

func (s *memorySource) Size() int64 { return int64(len(s.data)) }

func (s *memorySource) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if off < 0 || n < 0 || off+n > s.Size() {
		return nil, fmt.Errorf("range %d+%d of %d bytes", off, n, s.Size())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	s.asked += n
	s.open++
	return &memoryBody{Reader: bytes.NewReader(s.data[off:][:n]), ctx: ctx, src: s}, nil
}

// counts returns and forgets what was asked so far.
func (s *memorySource) counts() (requests int, asked int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests, asked = s.requests, s.asked
	s.requests, s.asked = 0, 0
	return requests, asked
}

type memoryBody struct {
	*bytes.Reader
	ctx context.Context
	src *memorySource
}

func (b *memoryBody) Read(p []byte) (int, error) {
	if b.src.read != nil {
		b.src.read()
	}
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.Reader.Read(p)
}

func (b *memoryBody) Close() error {
	b.src.mu.Lock()
	defer b.src.mu.Unlock()
	b.src.open--
	return nil
}
