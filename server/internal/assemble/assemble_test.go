package assemble

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/downlink-go/downlink/server/internal/download"
)

// memory is a store that holds everything in memory and tells the checksum of
// each part, as S3 does.
type memory struct {
	mu       sync.Mutex
	assets   map[string][]byte
	begun    int
	upload   string // under way
	parts    map[int][]byte
	object   []byte
	digest   string
	uploaded int
	told     func(whole, part []byte) *uint32 // of a copied part
	fail     func(number int) error
}

func newMemory() *memory {
	return &memory{assets: map[string][]byte{}, told: func(_, part []byte) *uint32 { return sumOf(part) },
		fail: func(int) error { return nil }}
}

func sumOf(b []byte) *uint32 { return new(crc32.ChecksumIEEE(b)) }

func (m *memory) Stat(context.Context, string) (download.Object, error) {
	return download.Object{}, download.ErrObjectNotFound
}

func (m *memory) Open(_ context.Context, o download.Object, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(m.assets[o.Key][off : off+n])), nil
}

func (m *memory) Begin(_ context.Context, _, _, digest string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begun++
	m.upload, m.parts, m.digest = fmt.Sprint("upload ", m.begun), map[int][]byte{}, digest
	return m.upload, nil
}

func (m *memory) put(upload string, number int, data []byte, told *uint32) (Stored, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if upload != m.upload {
		return Stored{}, ErrNoUpload
	}
	if err := m.fail(number); err != nil {
		return Stored{}, err
	}
	m.parts[number] = slices.Clone(data)
	return Stored{Number: number, Size: int64(len(data)), Tag: fmt.Sprint(number), CRC32: told}, nil
}

func (m *memory) Upload(_ context.Context, _, upload string, number int, data []byte, sum uint32) (Stored, error) {
	m.mu.Lock()
	m.uploaded += len(data)
	m.mu.Unlock()
	return m.put(upload, number, data, &sum)
}

func (m *memory) Copy(_ context.Context, _, upload string, number int, from download.Object, off, n int64) (Stored, error) {
	whole := m.assets[from.Key]
	return m.put(upload, number, whole[off:off+n], m.told(whole, whole[off:off+n]))
}

func (m *memory) Parts(_ context.Context, _, upload string) ([]Stored, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if upload != m.upload {
		return nil, ErrNoUpload
	}
	var parts []Stored
	for number, data := range m.parts {
		parts = append(parts, Stored{Number: number, Size: int64(len(data)), Tag: fmt.Sprint(number), CRC32: sumOf(data)})
	}
	return parts, nil
}

func (m *memory) Complete(_ context.Context, _, _ string, parts []Stored) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.object = []byte{}
	for i, number := range slices.Sorted(maps.Keys(m.parts)) {
		if number != i+1 || number != parts[i].Number {
			return fmt.Errorf("part %d is missing", i+1)
		}
		m.object = append(m.object, m.parts[number]...)
	}
	m.upload = ""
	return nil
}

func (m *memory) Abort(context.Context, string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.upload = ""
	return nil
}

func (m *memory) Find(context.Context, string) (int64, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.object == nil {
		return 0, "", download.ErrObjectNotFound
	}
	return int64(len(m.object)), m.digest, nil
}

func (m *memory) Delete(context.Context, string) error { return nil }

// job returns the job of a package with assets of these sizes, and its bytes.
func (m *memory) job(t *testing.T, sizes ...int) (j Job, want []byte) {
	t.Helper()
	var assets []download.Asset
	r := rand.NewChaCha8([32]byte{})
	for i, n := range sizes {
		data := make([]byte, n)
		_, _ = r.Read(data) // never fails
		key := fmt.Sprintf("W/J/outputs/%d", i)
		m.assets[key] = data
		assets = append(assets, download.Asset{
			Role: download.Output, Path: fmt.Sprint(i), Object: download.Object{Key: key, Version: "1", Size: int64(n), Modified: time.Unix(0, 0)},
			Checksum: &download.Checksum{CRC32: crc32.ChecksumIEEE(data)},
		})
	}
	content, err := download.NewContent(download.NewPlan("W", "J", assets), m)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := content.Layout.NewReader(t.Context(), content).CopyN(&b, content.Layout.Size()); err != nil {
		t.Fatal(err)
	}
	digest := content.Layout.Digest()
	return Job{
		Store: m, Key: "key", Filename: "W_J.zip", Digest: hex.EncodeToString(digest[:]), Content: content,
		Memory: semaphore.NewWeighted(S3.MaxUpload),
		Begun:  func(context.Context, string) error { return nil },
		Done:   func(int64) {},
	}, b.Bytes()
}

func TestRun(t *testing.T) {
	t.Parallel()
	m := newMemory()
	j, want := m.job(t, 11<<20, 3, 0, 20<<20, 1000)
	r, err := j.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.object, want) {
		t.Fatal("the object is not the package")
	}
	if int(r.Uploaded) != m.uploaded || r.Uploaded+r.Copied != int64(len(want)) || r.Uploaded > 11<<20 || r.Reused != 0 {
		t.Errorf("%+v of %d bytes, %d uploaded", r, len(want), m.uploaded)
	}
}

// TestRunGoesOn fails at each part in turn and goes on, with one upload.
func TestRunGoesOn(t *testing.T) {
	t.Parallel()
	m := newMemory()
	j, want := m.job(t, 11<<20, 12<<20, 13<<20)
	j.Begun = func(_ context.Context, upload string) error {
		j.Upload = upload
		return nil
	}
	failure := errors.New("as the test has it")
	var reused int64
	for failing := 7; failing > 0; failing-- {
		m.fail = func(number int) error {
			if number == failing {
				return failure
			}
			return nil
		}
		r, err := j.Run(t.Context())
		if !errors.Is(err, failure) {
			t.Fatalf("part %d failed: %v", failing, err)
		}
		reused = max(reused, r.Reused)
		delete(m.parts, failing-1)
	}
	m.fail = func(int) error { return nil }
	if _, err := j.Run(t.Context()); err != nil || !bytes.Equal(m.object, want) {
		t.Fatalf("not the package in the end: %v", err)
	}
	if m.begun != 1 || reused == 0 {
		t.Errorf("%d uploads were begun, up to %d bytes reused", m.begun, reused)
	}
	// A process that ended before it could say so has completed it.
	r, err := j.Run(t.Context())
	if err != nil || r.Reused != int64(len(want)) || m.begun != 1 {
		t.Errorf("after it was completed: %+v, %v, %d uploads", r, err, m.begun)
	}
	// What is there under its name is something else.
	m.object = m.object[1:]
	if _, err := j.Run(t.Context()); err != nil || !bytes.Equal(m.object, want) || m.begun != 2 {
		t.Errorf("after it was damaged: %v, %d uploads", err, m.begun)
	}
}

func TestRunVerifies(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		told  func(whole, part []byte) *uint32
		wrong bool // the second asset is not what its checksum says
		want  error
	}{
		{"right", func(_, part []byte) *uint32 { return sumOf(part) }, false, nil},
		{"wrong", func(_, part []byte) *uint32 { return sumOf(part) }, true, ErrContent},
		{"nothing told", func(_, _ []byte) *uint32 { return nil }, true, nil},
		{"told of the whole object", func(whole, _ []byte) *uint32 { return sumOf(whole) }, false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			m.told = tt.told
			j, _ := m.job(t, 11<<20, 12<<20)
			if tt.wrong {
				m.assets["W/J/outputs/1"][10<<20]++
			}
			if _, err := j.Run(t.Context()); !errors.Is(err, tt.want) {
				t.Errorf("Run = %v, want %v", err, tt.want)
			}
			if (m.object == nil) != (tt.want != nil) {
				t.Errorf("there is an object: %t", m.object != nil)
			}
		})
	}
}

// TestRunLosesItsRight ends the upload that it could not note.
func TestRunLosesItsRight(t *testing.T) {
	t.Parallel()
	m := newMemory()
	j, _ := m.job(t, 1)
	lost := errors.New("lost")
	j.Begun = func(context.Context, string) error { return lost }
	if _, err := j.Run(t.Context()); !errors.Is(err, lost) || m.upload != "" || m.object != nil {
		t.Errorf("Run = %v, with upload %q left", err, m.upload)
	}
}
