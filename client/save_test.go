package client

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/downlink-go/downlink/client/internal/faultserver"
	"github.com/downlink-go/downlink/client/internal/transfer"
)

// saveClient is a client that gives up soon.
func saveClient(t testing.TB, s *faultserver.Server) *Client {
	t.Helper()
	c, err := New(s.APIURL(), WithAPIKey(testKey), WithHTTPClient(s.Client()),
		WithStallTimeout(10*time.Second), WithRetryBudget(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// noise returns n bytes that are the same for the same seed.
func noise(seed byte, n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return string(b)
}

// large is a package of several connections' worth.
func large(t testing.TB, seed byte) []byte {
	t.Helper()
	return storedZip(t, withManifest(t, nil,
		text("inputs/a.tif", noise(seed, 3<<20)), text("outputs/b.tif", noise(seed+1, 3<<20)), text("outputs/c.txt", "small"))...)
}

// notes collects what is told once.
type notes struct {
	mu  sync.Mutex
	all []string
}

func (n *notes) option() TransferOption {
	return WithProgress(func(p Progress) {
		if p.Note != "" {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.all = append(n.all, p.Note)
		}
	})
}

func (n *notes) has(text string) bool { return strings.Contains(strings.Join(n.all, "\n"), text) }

// wantSaved checks that the file is there, right, and alone.
func wantSaved(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file has %d bytes that are not the %d of the package, %v", len(got), len(want), err)
	}
	wantAlone(t, path)
}

// wantAlone checks that there is nothing beside the file.
func wantAlone(t testing.TB, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(path) {
			t.Errorf("%s is left over", e.Name())
		}
	}
}

func wantAbsent(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a file: %v", err)
	}
}

func TestSave(t *testing.T) {
	t.Parallel()
	for name, data := range map[string][]byte{
		"large":    large(t, 1),
		"small":    storedZip(t, withManifest(t, nil, tree()...)...),
		"deflated": deflatedZip(t, tree()...),
		"empty":    storedZip(t),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := faultserver.Start(t, data)
			path := filepath.Join(t.TempDir(), "p.zip")
			r, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path)
			if err != nil {
				t.Fatal(err)
			}
			if want := (Result{Path: path, Size: int64(len(data)), ID: faultserver.ID, Verified: true}); *r != want {
				t.Errorf("got %+v, want %+v", *r, want)
			}
			wantSaved(t, path, data)
		})
	}
}

func TestSaveAndWhatIsThereAlready(t *testing.T) {
	t.Parallel()
	data := large(t, 1)
	wrong := damage(t, data, "outputs/b.tif")
	for name, test := range map[string]struct {
		there   []byte
		options []SaveOption
		faults  []faultserver.Fault
		kept    bool
		refused bool
	}{
		"right":                    {there: data, kept: true},
		"right, to be overwritten": {there: data, options: []SaveOption{WithOverwrite()}, kept: true},
		"damaged":                  {there: wrong},
		"other":                    {there: []byte("notes"), refused: true},
		"other package":            {there: large(t, 7), refused: true},
		"empty":                    {there: []byte{}, refused: true},
		"other, to be overwritten": {there: []byte("notes"), options: []SaveOption{WithOverwrite()}},
		"no telling":               {there: data, faults: []faultserver.Fault{faultserver.NoRanges()}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := faultserver.Start(t, data, test.faults...)
			path := filepath.Join(t.TempDir(), "p.zip")
			if err := os.WriteFile(path, test.there, 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path, test.options...)
			if test.refused {
				exists, ok := errors.AsType[*FileExistsError](err)
				if !ok || exists.Path != path || !errors.Is(err, fs.ErrExist) {
					t.Errorf("got %v, want a FileExistsError", err)
				}
				wantSaved(t, path, test.there)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.Kept != test.kept {
				t.Errorf("kept: %t, want %t", r.Kept, test.kept)
			}
			if test.kept && s.Sent() > int64(len(data))/10 {
				t.Errorf("%d bytes were fetched for a file that is right", s.Sent())
			}
			wantSaved(t, path, data)
		})
	}
}

func TestSaveRefusesWhatIsNoFile(t *testing.T) {
	t.Parallel()
	s := faultserver.Start(t, large(t, 1))
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, link, filepath.Join(dir, "none", "p.zip")} {
		if _, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
	wantAbsent(t, filepath.Join(dir, "elsewhere"))
}

// A file that gets the name while the package is being fetched is not replaced.
func TestSaveDoesNotReplaceALateFile(t *testing.T) {
	t.Parallel()
	data := large(t, 1)
	s := faultserver.Start(t, data)
	path := filepath.Join(t.TempDir(), "p.zip")
	s.OnSent(int64(len(data))/2, func() { _ = os.WriteFile(path, []byte("notes"), 0o600) })
	_, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path)
	if _, ok := errors.AsType[*FileExistsError](err); !ok {
		t.Errorf("got %v, want a FileExistsError", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "notes" {
		t.Error("the file was replaced")
	}
}

func TestSaveResumes(t *testing.T) {
	t.Parallel()
	data := large(t, 1)
	s := faultserver.Start(t, data)
	path := filepath.Join(t.TempDir(), "p.zip")
	ctx, cancel := context.WithCancel(t.Context())
	s.OnSent(int64(len(data))/2, cancel)
	if _, err := saveClient(t, s).Save(ctx, "W1", "J1", path); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want %v", err, context.Canceled)
	}
	wantAbsent(t, path)
	var told notes
	r, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path, told.option())
	if err != nil {
		t.Fatal(err)
	}
	if r.Resumed == 0 || !told.has("going on") {
		t.Errorf("resumed %d bytes, told %q", r.Resumed, told.all)
	}
	wantSaved(t, path, data)
}

func TestSaveStartsOverWhenThePackageChanged(t *testing.T) {
	t.Parallel()
	before, after := large(t, 1), large(t, 3)
	t.Run("between runs", func(t *testing.T) {
		t.Parallel()
		s := faultserver.Start(t, before)
		path := filepath.Join(t.TempDir(), "p.zip")
		ctx, cancel := context.WithCancel(t.Context())
		s.OnSent(int64(len(before))/2, cancel)
		if _, err := saveClient(t, s).Save(ctx, "W1", "J1", path); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want %v", err, context.Canceled)
		}
		s.Replace(after)
		var told notes
		r, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path, told.option())
		if err != nil || r.Resumed != 0 || !told.has("starting over") {
			t.Errorf("got %+v, %v, told %q", r, err, told.all)
		}
		wantSaved(t, path, after)
	})
	t.Run("during a run", func(t *testing.T) {
		t.Parallel()
		s := faultserver.Start(t, before, faultserver.Truncate(1<<20))
		s.OnSent(int64(len(before))/2, func() { s.Replace(after) })
		path := filepath.Join(t.TempDir(), "p.zip")
		var told notes
		if _, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path, told.option()); err != nil || !told.has("has changed") {
			t.Errorf("got %v, told %q", err, told.all)
		}
		wantSaved(t, path, after)
	})
	t.Run("for ever", func(t *testing.T) {
		t.Parallel()
		s := faultserver.Start(t, before, func(next http.Handler) http.Handler {
			n := byte(0)
			var mu sync.Mutex
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				n++
				w.Header().Set("X-N", string('a'+n))
				faultserver.Fields("ETag", `"`+string('a'+n)+`"`)(next).ServeHTTP(w, r)
				mu.Unlock()
			})
		})
		path := filepath.Join(t.TempDir(), "p.zip")
		if _, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path); !errors.Is(err, ErrChanged) {
			t.Errorf("got %v, want %v", err, ErrChanged)
		}
		wantAbsent(t, path)
	})
}

// Only what is damaged is fetched once more.
func TestSaveRepairs(t *testing.T) {
	t.Parallel()
	data := large(t, 1)
	s := faultserver.Start(t, data, faultserver.Where(func(r *http.Request) bool {
		return strings.HasPrefix(r.Header.Get("Range"), "bytes=0-")
	}, faultserver.Times(1, faultserver.Garbage())))
	path := filepath.Join(t.TempDir(), "p.zip")
	var told notes
	r, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path, told.option(), WithConnections(2))
	if err != nil {
		t.Fatal(err)
	}
	if r.Resumed < 3<<20 || !told.has("damaged") {
		t.Errorf("%d bytes were taken for right, want half of %d; told %q", r.Resumed, len(data), told.all)
	}
	wantSaved(t, path, data)
}

func TestSaveNeverKeepsAWrongFile(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		data   []byte
		faults []faultserver.Fault
	}{
		"damaged at the source": {data: damage(t, large(t, 1), "inputs/a.tif")},
		"damaged, no ranges":    {data: damage(t, large(t, 1), "inputs/a.tif"), faults: []faultserver.Fault{faultserver.NoRanges()}},
		"damaged, deflated":     {data: damage(t, deflatedZip(t, tree()...), "outputs/deep/er/y.tif")},
		"garbage always":        {data: large(t, 1), faults: []faultserver.Fault{faultserver.After(1, faultserver.Garbage())}},
		"no ZIP":                {data: []byte(noise(1, 1<<20))},
		"truncated ZIP":         {data: large(t, 1)[:5<<20]},
		"no ZIP, no ranges":     {data: []byte(noise(1, 1<<20)), faults: []faultserver.Fault{faultserver.NoRanges()}},
		"ends early, no length": {data: large(t, 1), faults: []faultserver.Fault{faultserver.CloseDelimited(1 << 20)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := faultserver.Start(t, test.data, test.faults...)
			path := filepath.Join(t.TempDir(), "p.zip")
			_, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path)
			if !damaged(err) {
				t.Errorf("got %v, want a VerifyError or a FormatError", err)
			}
			wantAbsent(t, path)
		})
	}
}

// TestEveryByteIsProved damages each byte in front of the directory in turn.
func TestEveryByteIsProved(t *testing.T) {
	t.Parallel()
	data := storedZip(t, withManifest(t, nil, text("inputs/a.tif", "input"), text("outputs/b.tif", "output"))...)
	end := bytes.Index(data, []byte("PK\x01\x02"))
	for i := range end { // up to the directory
		if header := bytes.LastIndex(data[:i+1], []byte("PK\x03\x04")); i-header == 4 {
			continue // a version that is lower does no harm
		}
		wrong := bytes.Clone(data)
		wrong[i] ^= 0x20
		if _, err := verifyBytes(t, wrong); !damaged(err) {
			t.Errorf("byte %d is wrong and it is accepted: %v", i, err)
		}
	}
}

func TestSaveWithoutVerification(t *testing.T) {
	t.Parallel()
	wrong := damage(t, large(t, 1), "inputs/a.tif")
	path := filepath.Join(t.TempDir(), "p.zip")
	r, err := saveClient(t, faultserver.Start(t, wrong)).Save(t.Context(), "W1", "J1", path, WithoutVerification())
	if err != nil || r.Verified {
		t.Errorf("got %+v, %v", r, err)
	}
	wantSaved(t, path, wrong)
}

func TestSaveIsAloneAtAFile(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("the test holds the lock in the way of Unix")
	}
	data := large(t, 1)
	s := faultserver.Start(t, data)
	path := filepath.Join(t.TempDir(), "p.zip")
	p, err := transfer.OpenPartial(path, faultserver.ID, transfer.Version{Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want %v", err, ErrBusy)
	}
	p.Close()
	if _, err := saveClient(t, s).Save(t.Context(), "W1", "J1", path); err != nil {
		t.Error(err)
	}
	wantSaved(t, path, data)
}

func TestCopy(t *testing.T) {
	t.Parallel()
	data := large(t, 1)
	for name, test := range map[string]struct {
		data   []byte
		faults []faultserver.Fault
		wrong  bool
	}{
		"right":                 {data: data},
		"deflated":              {data: deflatedZip(t, tree()...)},
		"cut":                   {data: data, faults: []faultserver.Fault{faultserver.Truncate(1 << 20)}},
		"no ranges":             {data: data, faults: []faultserver.Fault{faultserver.NoRanges()}},
		"damaged":               {data: damage(t, data, "outputs/b.tif"), wrong: true},
		"damaged in the middle": {data: data, faults: []faultserver.Fault{faultserver.After(2, faultserver.Garbage())}, wrong: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := faultserver.Start(t, test.data, test.faults...)
			var got bytes.Buffer
			n, err := saveClient(t, s).Copy(t.Context(), "W1", "J1", &got)
			if test.wrong {
				if !damaged(err) {
					t.Errorf("got %v, want a VerifyError", err)
				}
				return
			}
			if err != nil || n != int64(len(test.data)) || !bytes.Equal(got.Bytes(), test.data) {
				t.Errorf("got %d bytes of %d, %v", n, len(test.data), err)
			}
		})
	}
}

func TestCopyEndsWithItsReader(t *testing.T) {
	t.Parallel()
	s := faultserver.Start(t, large(t, 1))
	gone := errors.New("the reader is gone")
	_, err := saveClient(t, s).Copy(t.Context(), "W1", "J1", writerFunc(func([]byte) (int, error) { return 0, gone }))
	if !errors.Is(err, gone) {
		t.Errorf("got %v, want %v", err, gone)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
