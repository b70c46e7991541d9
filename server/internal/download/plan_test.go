package download

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

var modified = time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)

func asset(role Role, path string, content string) Asset {
	return Asset{
		Role: role,
		Path: path,
		Object: Object{
			Key:      "W1/J1/" + role.Dir() + "/" + path,
			Version:  "v1",
			Size:     int64(len(content)),
			Modified: modified,
		},
		Checksum: &Checksum{CRC32: crc32.ChecksumIEEE([]byte(content))},
	}
}

// TestPlanIDIsFixed pins the identifier: clients and replicas of other releases
// rely on it.
func TestPlanIDIsFixed(t *testing.T) {
	t.Parallel()
	p := NewPlan("W1", "J1", []Asset{asset(Output, "b.tif", "b"), asset(Input, "a.tif", "a")})
	if got, want := p.ID, uuid.MustParse("d9ef88bf-5c43-51fa-b26c-5bdd81d19ac4"); got != want {
		t.Errorf("id = %s, want %s", got, want)
	}
	if v := p.ID.Version(); v != 5 {
		t.Errorf("version %d, want 5", v)
	}
}

func TestPlanIDDependsOnEverything(t *testing.T) {
	t.Parallel()
	base := func() []Asset { return []Asset{asset(Input, "a.tif", "a"), asset(Output, "b.tif", "b")} }
	ids := map[uuid.UUID]string{NewPlan("W1", "J1", base()).ID: "nothing"}
	add := func(what string, p *Plan) {
		if other, ok := ids[p.ID]; ok {
			t.Errorf("a change of %s gives the id of a change of %s", what, other)
		}
		ids[p.ID] = what
	}
	add("workflow", NewPlan("W2", "J1", base()))
	add("job", NewPlan("W1", "J2", base()))
	for what, change := range map[string]func(*Asset){
		"role":       func(a *Asset) { a.Role = Output },
		"path":       func(a *Asset) { a.Path = "c.tif" },
		"key":        func(a *Asset) { a.Object.Key = "elsewhere" },
		"version":    func(a *Asset) { a.Object.Version = "v2" },
		"size":       func(a *Asset) { a.Object.Size++ },
		"time":       func(a *Asset) { a.Object.Modified = modified.Add(time.Nanosecond) },
		"media type": func(a *Asset) { a.MediaType = "text/plain" },
		"crc":        func(a *Asset) { a.Checksum = &Checksum{CRC32: 1} },
		"no crc":     func(a *Asset) { a.Checksum = nil },
		"sha256":     func(a *Asset) { a.Checksum = &Checksum{CRC32: a.Checksum.CRC32, SHA256: make([]byte, 32)} },
	} {
		assets := base()
		change(&assets[0])
		add(what, NewPlan("W1", "J1", assets))
	}
	add("assets", NewPlan("W1", "J1", base()[:1]))
	swapped := base()
	slices.Reverse(swapped)
	if got, want := NewPlan("W1", "J1", swapped).ID, NewPlan("W1", "J1", base()).ID; got != want {
		t.Errorf("the order of the assets changes the id: %s, want %s", got, want)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		paths []string
		want  []string // by path, as they are given
	}{
		{"plain", []string{"a.tif", "dir/b.tif"}, []string{"a.tif", "dir/b.tif"}},
		{"non-ASCII stays", []string{"Übersicht.txt", "衛星.tif"}, []string{"Übersicht.txt", "衛星.tif"}},
		{"normal form C", []string{"U\u0308.txt"}, []string{"Ü.txt"}},
		{"no traversal", []string{"../../etc/passwd", "/abs", "a/./b", "a//c"}, []string{"__/__/etc/passwd", "_/abs", "a/_/b", "a/_/c"}},
		{"no backslash or control", []string{"a\\b", "c\x00d", "e\nf", "g\x7fh"}, []string{"a_b", "c_d", "e_f", "g_h"}},
		{"not UTF-8", []string{"a\xffb"}, []string{"a_b"}},
		{"what Windows forbids", []string{"2026-01-01T00:00:00.tif", "a?b*c"}, []string{"2026-01-01T00_00_00.tif", "a_b_c"}},
		{"what Windows reserves", []string{"con", "NUL.txt", "x/Lpt1.tar.gz", "COM¹", "console.tif", "com0"}, []string{"_con", "_NUL.txt", "x/_Lpt1.tar.gz", "_COM¹", "console.tif", "com0"}},
		{"what Windows drops", []string{"a.", "b ", "c. ./d"}, []string{"a_", "b_", "c___/d"}},
		{"same but for case", []string{"A.tif", "a.TIF", "a.tif"}, []string{"A.tif", "a~2.TIF", "a~3.tif"}},
		{"same but for case, folded", []string{"STRASSE", "straße"}, []string{"STRASSE", "straße~2"}},
		{"safe names go first", []string{"a:b", "a_b"}, []string{"a_b~2", "a_b"}},
		{"the second choice is taken", []string{"A.tif", "a.tif", "a~2.tif"}, []string{"A.tif", "a~3.tif", "a~2.tif"}},
		{"a file and a folder", []string{"a", "a/b", "A/c"}, []string{"a~2", "a/b", "A/c"}},
		{"hidden file", []string{".x", ".X"}, []string{".x~2", ".X"}},
		{"renamed collides with renamed", []string{"a:b", "a?b"}, []string{"a_b", "a_b~2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var assets []Asset
			for _, path := range tt.paths {
				assets = append(assets, asset(Input, path, ""))
			}
			p := NewPlan("W1", "J1", assets)
			got := map[string]string{}
			for _, e := range p.Entries {
				got[e.Path] = strings.TrimPrefix(e.Name, "inputs/")
			}
			for i, path := range tt.paths {
				if got[path] != tt.want[i] {
					t.Errorf("name of %q = %q, want %q", path, got[path], tt.want[i])
				}
			}
		})
	}
}

// pathGenerator makes paths that collide and misbehave more often than not.
var pathGenerator = rapid.Custom(func(t *rapid.T) string {
	return rapid.OneOf(
		rapid.StringMatching(`[aA./\\:~ 2]{1,6}`),
		rapid.StringMatching(`(con|NUL|a)(\.tif)?`),
		rapid.StringN(1, 12, -1),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 1, 8), func(b []byte) string { return string(b) }),
	).Draw(t, "path")
})

func drawAssets(t *rapid.T) []Asset {
	var assets []Asset
	seen := map[string]bool{}
	for range rapid.IntRange(0, 12).Draw(t, "assets") {
		a := asset(rapid.SampledFrom([]Role{Input, Output}).Draw(t, "role"), pathGenerator.Draw(t, "path"), "")
		if seen[a.natural()] {
			continue
		}
		seen[a.natural()] = true
		a.Object.Size = rapid.Int64Range(0, 1<<50).Draw(t, "size")
		a.Object.Modified = time.Unix(0, rapid.Int64().Draw(t, "modified")).UTC()
		switch rapid.IntRange(0, 2).Draw(t, "checksum") {
		case 0:
			a.Checksum = nil
		case 1:
			a.Checksum.SHA256 = rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "sha256")
		}
		if rapid.Bool().Draw(t, "elsewhere") {
			a.Object.Key = rapid.StringN(1, 20, -1).Draw(t, "key")
		}
		a.MediaType = rapid.SampledFrom([]string{"", "image/tiff"}).Draw(t, "media type")
		assets = append(assets, a)
	}
	return assets
}

// TestNamesAreSafe: whatever the paths, the names can be extracted anywhere, are
// unique there, and do not depend on the order of the assets.
func TestNamesAreSafe(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		assets := drawAssets(t)
		reversed := slices.Clone(assets)
		slices.Reverse(reversed)
		p := NewPlan("W", "J", assets)
		if q := NewPlan("W", "J", reversed); !reflect.DeepEqual(p, q) {
			t.Fatalf("the plan depends on the order of the assets:\n%v\n%v", p, q)
		}
		checkNames(t, p)
	})
}

// FuzzNames does the same with paths of any bytes, one a line.
func FuzzNames(f *testing.F) {
	f.Add("a\nA\na/b\na~2\n")
	f.Add("../x\n/y\nc:\\z\n\x00\xff\ncon.txt\n.\n..\n ")
	f.Add("U\u0308\n\u00dc\nu\u0308\nstra\u00dfe\nSTRASSE\n\u202e\ufeff")
	f.Fuzz(func(t *testing.T, paths string) {
		var assets []Asset
		seen := map[string]bool{}
		for i, path := range strings.Split(paths, "\n") {
			if !seen[path] && i < 200 {
				assets = append(assets, asset(Output, path, ""))
				seen[path] = true
			}
		}
		checkNames(t, NewPlan("W", "J", assets))
	})
}

func checkNames(t interface{ Fatalf(string, ...any) }, p *Plan) {
	if !slices.IsSortedFunc(p.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) }) {
		t.Fatalf("the entries are not in order")
	}
	files, folders := map[string]bool{}, map[string]bool{}
	for _, e := range p.Entries {
		if again := safeName(e.Name); again != e.Name {
			t.Fatalf("%q is not safe: becomes %q", e.Name, again)
		}
		if !strings.HasPrefix(e.Name, e.Role.Dir()+"/") {
			t.Fatalf("%q is not in %s/", e.Name, e.Role.Dir())
		}
		folded := fold(e.Name)
		if files[folded] {
			t.Fatalf("%q stands twice", e.Name)
		}
		files[folded] = true
		for i, c := range folded {
			if c == '/' {
				folders[folded[:i]] = true
			}
		}
	}
	for folder := range folders {
		if files[folder] {
			t.Fatalf("%q is a file and a folder", folder)
		}
	}
}

func TestPlanCodec(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := NewPlan("W1", "J1", drawAssets(t))
		data, err := p.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		got, err := UnmarshalPlan(data)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Entries) == 0 {
			p.Entries = []Entry{}
		}
		if !reflect.DeepEqual(got, p) {
			t.Fatalf("got  %+v\nwant %+v", got, p)
		}
		for n := range data {
			if _, err := UnmarshalPlan(data[:n]); err == nil {
				t.Fatalf("the first %d of %d bytes are taken for a plan", n, len(data))
			}
		}
	})
}

func FuzzUnmarshalPlan(f *testing.F) {
	p := NewPlan("W1", "J1", []Asset{asset(Input, "a.tif", "a"), asset(Output, "con", "b")})
	data, err := p.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte{planVersion})
	f.Add([]byte{planVersion + 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := UnmarshalPlan(data)
		if err != nil {
			return
		}
		if _, err := p.MarshalBinary(); err != nil {
			t.Errorf("a plan that was read cannot be written: %v", err)
		}
	})
}

// TestLayout opens the package with another reader of ZIP, and its manifest with
// another reader of JSON.
func TestLayout(t *testing.T) {
	t.Parallel()
	p := NewPlan("W1", "J1", []Asset{
		asset(Input, "a.tif", "aaa"),
		asset(Input, "b:c", "bcbc"),
		asset(Output, "Ü'&.txt", ""),
	})
	p.Entries[0].Checksum.SHA256 = bytes.Repeat([]byte{0xab}, 32)
	contents := map[string]string{"inputs/a.tif": "aaa", "inputs/b_c": "bcbc", "outputs/Ü'&.txt": ""}

	z := openLayout(t, p, contents)
	if got := z.File[0].Name; got != ManifestName {
		t.Errorf("first entry %q, want %q", got, ManifestName)
	}
	var manifest struct {
		Job struct {
			WorkflowID string `json:"workflow_id"`
			JobID      string `json:"job_id"`
		}
		PackageID uuid.UUID `json:"package_id"`
		Entries   []struct {
			Path, Role, CRC32, SHA256 string
			OriginalPath              *string `json:"original_path"`
			Size                      int64
			MediaType                 string `json:"media_type"`
			Modified                  time.Time
		}
	}
	r, err := z.Open(ManifestName)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(r).Decode(&manifest); err != nil {
		t.Fatal(err)
	}
	if manifest.Job.WorkflowID != "W1" || manifest.Job.JobID != "J1" || manifest.PackageID != p.ID {
		t.Errorf("manifest of %+v %s", manifest.Job, manifest.PackageID)
	}
	if len(manifest.Entries) != 3 {
		t.Fatalf("%d entries in the manifest, want 3", len(manifest.Entries))
	}
	for i, want := range []struct{ path, original, sha, mediaType string }{
		{"inputs/a.tif", "", strings.Repeat("ab", 32), "image/tiff"},
		{"inputs/b_c", "inputs/b:c", "", "application/octet-stream"},
		{"outputs/Ü'&.txt", "", "", "text/plain"},
	} {
		e := manifest.Entries[i]
		original := ""
		if e.OriginalPath != nil {
			original = *e.OriginalPath
		}
		if e.Path != want.path || original != want.original || e.SHA256 != want.sha || e.MediaType != want.mediaType {
			t.Errorf("entry %d: got %+v, want %+v", i, e, want)
		}
		if got, want := e.CRC32, fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(contents[e.Path]))); got != want {
			t.Errorf("%s: crc32 %s, want %s", e.Path, got, want)
		}
		if !e.Modified.Equal(modified.Truncate(time.Second)) {
			t.Errorf("%s: modified %s, want %s", e.Path, e.Modified, modified)
		}
	}
}

// openLayout reads a whole package through its layout.
func openLayout(t *testing.T, p *Plan, contents map[string]string) *zip.Reader {
	t.Helper()
	layout, err := p.Layout()
	if err != nil {
		t.Fatal(err)
	}
	content := &Content{Plan: p, Layout: layout, objects: memory{p, contents}}
	r := content.Layout.NewReader(t.Context(), content)
	defer r.Close()
	var b bytes.Buffer
	if _, err := r.CopyN(&b, layout.Size()); err != nil {
		t.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range z.File[1:] {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(r); err != nil || string(data) != contents[f.Name] {
			t.Errorf("%s: %q, %v, want %q", f.Name, data, err, contents[f.Name])
		}
	}
	return z
}

func TestLayoutNeedsChecksums(t *testing.T) {
	t.Parallel()
	a := asset(Input, "a", "a")
	a.Checksum = nil
	p := NewPlan("W", "J", []Asset{a, asset(Input, "b", "b")})
	if n, size := p.Missing(); n != 1 || size != 1 {
		t.Errorf("missing %d entries of %d bytes, want 1 of 1", n, size)
	}
	if _, err := p.Layout(); err == nil {
		t.Error("a plan without a checksum was laid out")
	}
}

// manyAssets returns the assets of a large job, checksums known.
func manyAssets(n int) []Asset {
	rng := rand.New(rand.NewPCG(1, 2))
	assets := make([]Asset, n)
	for i := range assets {
		a := asset(Output, fmt.Sprintf("tiles/%02d/scene_%06d.tif", i%100, i), "")
		a.Object.Size = rng.Int64N(1 << 20)
		a.Checksum = &Checksum{CRC32: rng.Uint32(), SHA256: make([]byte, 32)}
		assets[i] = a
	}
	return assets
}

func BenchmarkNewPlan(b *testing.B) {
	assets := manyAssets(100_000)
	b.ReportAllocs()
	for b.Loop() {
		NewPlan("W1", "J1", slices.Clone(assets))
	}
}

func BenchmarkPlanLayout(b *testing.B) {
	p := NewPlan("W1", "J1", manyAssets(100_000))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Layout(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnmarshalPlan(b *testing.B) {
	data, err := NewPlan("W1", "J1", manyAssets(100_000)).MarshalBinary()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := UnmarshalPlan(data); err != nil {
			b.Fatal(err)
		}
	}
}
