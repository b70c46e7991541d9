package client

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkVerifyFile checks a package of one large file and many small ones.
func BenchmarkVerifyFile(b *testing.B) {
	files := []testFile{{name: "large", data: make([]byte, 256<<20)}}
	for i := range 1000 {
		files = append(files, testFile{name: fmt.Sprintf("small/%d", i), data: make([]byte, 100<<10)})
	}
	for name, data := range map[string][]byte{"crc": storedZip(b, files...), "sha256": storedZip(b, withManifest(b, nil, files...)...)} {
		b.Run(name, func(b *testing.B) {
			file := filepath.Join(b.TempDir(), "p.zip")
			if err := os.WriteFile(file, data, 0o600); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := VerifyFile(b.Context(), file); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkExtractSmall writes many small files, each of which is brought to disk.
func BenchmarkExtractSmall(b *testing.B) {
	var files []testFile
	for i := range 5000 {
		files = append(files, text(fmt.Sprintf("outputs/%d/%d", i%50, i), strings.Repeat("x", 10_000)))
	}
	data := storedZip(b, withManifest(b, nil, files...)...)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := extractTest(b, data, b.TempDir()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen reads the directory of a package of 100,000 files.
func BenchmarkOpen(b *testing.B) {
	files := make([]testFile, 100_000)
	for i := range files {
		files[i] = text(fmt.Sprintf("outputs/%03d/scene_%06d.tif", i/1000, i), "data")
	}
	src := &memorySource{data: storedZip(b, files...)}
	b.ReportAllocs()
	for b.Loop() {
		p, err := openPackage(b.Context(), "P1", src)
		if err != nil {
			b.Fatal(err)
		}
		_ = p.Close()
	}
}
