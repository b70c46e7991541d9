package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func verifyBytes(t testing.TB, data []byte, opts ...VerifyOption) (*Report, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "p.zip")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return VerifyFile(t.Context(), name, opts...)
}

// wantProblem checks that the error names one file, and why.
func wantProblem(t testing.TB, err error, name, why string) {
	t.Helper()
	e, ok := errors.AsType[*VerifyError](err)
	if !ok || len(e.Problems) != 1 || e.Problems[0].Name != name || !strings.Contains(e.Problems[0].Reason, why) {
		t.Errorf("got %v, want the one problem that %q %s", err, name, why)
	}
}

func TestVerifyFileAcceptsWhatIsRight(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		data []byte
		want Report
	}{
		"ours":      {storedZip(t, withManifest(t, nil, tree()...)...), Report{Files: len(tree()) + 1, Manifest: true}},
		"stored":    {storedZip(t, tree()...), Report{Files: len(tree())}},
		"deflated":  {deflatedZip(t, tree()...), Report{Files: len(tree())}},
		"other":     {storedZip(t, text(manifestName, `{"entries":[{"path":"x"}]}`), text("a", "x")), Report{Files: 2}},
		"no JSON":   {storedZip(t, text(manifestName, "name: x"), text("a", "x")), Report{Files: 2}},
		"long JSON": {storedZip(t, text(manifestName, `{"package_id":"`+strings.Repeat("x", 2*maxManifestStep)+`","entries":[]}`)), Report{Files: 1}},
		"nothing":   {storedZip(t), Report{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var last Progress
			got, err := verifyBytes(t, test.data, WithProgress(func(p Progress) { last = p }))
			if err != nil {
				t.Fatal(err)
			}
			test.want.Bytes = got.Bytes
			if *got != test.want {
				t.Errorf("got %+v, want %+v", *got, test.want)
			}
			if last.Done != got.Bytes || last.Total != got.Bytes {
				t.Errorf("the progress ends at %d of %d, want %d", last.Done, last.Total, got.Bytes)
			}
		})
	}
}

func TestVerifyFileFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	edit := func(change func(map[string]any)) []byte {
		return storedZip(t, withManifest(t, func(e []map[string]any) []map[string]any {
			change(e[0])
			return e
		}, tree()...)...)
	}
	first := tree()[0].name
	for name, test := range map[string]struct {
		data      []byte
		file, why string
	}{
		"content":          {damage(t, storedZip(t, tree()...), first), first, "CRC-32"},
		"packed content":   {damage(t, deflatedZip(t, tree()...), "outputs/deep/er/y.tif"), "outputs/deep/er/y.tif", ""},
		"manifest content": {damage(t, storedZip(t, withManifest(t, nil, tree()...)...), manifestName), manifestName, "CRC-32"},
		"SHA-256":          {edit(func(e map[string]any) { e["sha256"] = strings.Repeat("00", 32) }), first, "SHA-256"},
		"size":             {edit(func(e map[string]any) { e["size"] = 1 }), first, "bytes in the manifest"},
		"CRC-32":           {edit(func(e map[string]any) { e["crc32"] = "00000000" }), first, "in the manifest"},
		"no SHA-256":       {edit(func(e map[string]any) { e["sha256"] = "x" }), first, "not one"},
		"no CRC-32":        {edit(func(e map[string]any) { e["crc32"] = "x" }), first, "not one"},
		"not listed": {storedZip(t, withManifest(t, func(e []map[string]any) []map[string]any { return e[1:] }, tree()...)...),
			first, "not in the manifest"},
		"listed twice": {storedZip(t, withManifest(t, func(e []map[string]any) []map[string]any { return append(e, e[0]) }, tree()...)...),
			first, "twice"},
		"not there": {storedZip(t, withManifest(t, func(e []map[string]any) []map[string]any {
			return append(e, map[string]any{"path": "outputs/none", "size": 1})
		}, tree()...)...), "outputs/none", "not in the package"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := verifyBytes(t, test.data)
			wantProblem(t, err, test.file, test.why)
		})
	}
}

func TestVerifyErrorIsBounded(t *testing.T) {
	t.Parallel()
	var files []testFile
	for i := range 300 {
		files = append(files, text(fmt.Sprintf("f%03d", i), "content"))
	}
	data := bytes.ReplaceAll(storedZip(t, files...), []byte("content"), []byte("CONTENT"))
	_, err := verifyBytes(t, data)
	e, ok := errors.AsType[*VerifyError](err)
	if !ok || e.Total != 300 || len(e.Problems) != maxProblems || len(e.Error()) > 200 {
		t.Errorf("got %v", err)
	}
}

func TestVerifyFileEndsWithTheContext(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "p.zip")
	if err := os.WriteFile(name, storedZip(t, tree()...), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := VerifyFile(ctx, name); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// A large file without SHA-256 is checked in parts.
func TestVerifyFileInParts(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("0123456789abcdef"), (verifyParts+verifyParts/2)/16)
	data := storedZip(t, testFile{name: "large", data: content})
	if _, err := verifyBytes(t, data); err != nil {
		t.Error(err)
	}
	_, err := verifyBytes(t, damage(t, data, "large"))
	wantProblem(t, err, "large", "CRC-32")
}

func TestCombineCRC(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.SliceOf(rapid.Byte()).Draw(t, "a"), rapid.SliceOf(rapid.Byte()).Draw(t, "b")
		got := combineCRC(crc32.ChecksumIEEE(a), crc32.ChecksumIEEE(b), int64(len(b)))
		if want := crc32.ChecksumIEEE(append(a, b...)); got != want {
			t.Fatalf("got %08x, want %08x", got, want)
		}
	})
}

// extracted returns a folder to which the files were extracted.
func extracted(t testing.TB, files ...testFile) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := extractTest(t, storedZip(t, withManifest(t, nil, files...)...), dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestVerifyDir(t *testing.T) {
	t.Parallel()
	first := tree()[0].name
	for name, test := range map[string]struct {
		change func(file string) error
		opts   []VerifyOption
		why    string // empty if it is right
	}{
		"right":           {change: func(string) error { return nil }},
		"another content": {change: func(f string) error { return os.WriteFile(f, []byte("INPUT"), 0o600) }, why: "CRC-32"},
		"another size":    {change: func(f string) error { return os.WriteFile(f, []byte("in"), 0o600) }, why: "has 2 bytes, not 5"},
		"missing":         {change: os.Remove, why: "is missing"},
		"left out":        {change: os.Remove, opts: []VerifyOption{WithExclude("inputs/a/**")}},
		"a link": {change: func(f string) error {
			return errors.Join(os.Rename(f, f+".real"), os.Symlink(filepath.Base(f)+".real", f))
		}, why: "not a regular file"},
		"folder leads out": {change: func(f string) error {
			dir := filepath.Dir(f)
			return errors.Join(os.Rename(dir, dir+".real"), os.Symlink(dir+".real", dir))
		}, why: "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := extracted(t, tree()...)
			if err := test.change(filepath.Join(dir, filepath.FromSlash(first))); err != nil {
				t.Fatal(err)
			}
			got, err := VerifyDir(t.Context(), dir, test.opts...)
			if test.why != "" {
				wantProblem(t, err, first, test.why)
				return
			}
			if err != nil || got.Files != len(tree())-len(test.opts) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestVerifyDirNeedsAManifest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := VerifyDir(t.Context(), dir); !errors.Is(err, ErrNoManifest) {
		t.Errorf("got %v, want %v", err, ErrNoManifest)
	}
	for content, want := range map[string]string{
		`{}`: ErrNoManifest.Error(),
		`{"package_id":"P1","entries":[{"path":"../a","crc32":"00000000"}]}`: "not a path within",
		`{"package_id":"P1","entries":[{"path":"a","size":1}]}`:              "no CRC-32",
	} {
		if err := os.WriteFile(filepath.Join(dir, manifestName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyDir(t.Context(), dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", content, err, want)
		}
	}
}
