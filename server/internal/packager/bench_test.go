package packager_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/catalog/catalogtest"
	"github.com/downlink-go/downlink/server/internal/download"
)

// BenchmarkHashing compares what a package's assets are read at with what the
// hashes alone reach in memory on all cores: for one large asset the two hashes
// beside each other, for many small ones as many assets as there are cores.
func BenchmarkHashing(b *testing.B) {
	for _, tt := range []struct {
		name     string
		assets   int
		size     int
		inMemory func(data []byte, assets, size int)
	}{
		{"one_large", 1, 512 << 20, hashBesides},
		{"many_small", 20_000, 200_000, hashEach},
		{"many_tiny", 20_000, 20_000, hashEach}, // much of it is to store the results
		{"some_large", 8, 64 << 20, hashEach},
	} {
		b.Run(tt.name, func(b *testing.B) {
			data := pattern(tt.size)
			total := float64(tt.assets) * float64(tt.size)
			s := &same{data: data}
			p := newPackager(b, openDB(b, catalogtest.SQLite(b)), s)
			run := 0
			var packaged, inMemory time.Duration
			for b.Loop() {
				start := time.Now()
				tt.inMemory(data, tt.assets, tt.size)
				inMemory += time.Since(start)

				run++
				assets := make([]download.Asset, tt.assets)
				for i := range assets {
					path := fmt.Sprintf("%d/%05d", run, i)
					assets[i] = download.Asset{Role: download.Output, Path: path,
						Object: download.Object{Key: path, Version: "1", Size: int64(tt.size)}}
				}
				plan := download.NewPlan("W", "J", assets)
				start = time.Now()
				if err := p.Warm(b.Context(), plan, func(int64, int64) {}); err != nil {
					b.Fatal(err)
				}
				packaged += time.Since(start)
			}
			b.ReportMetric(total*float64(run)/packaged.Seconds()/1e6, "MB/s")
			b.ReportMetric(total*float64(run)/inMemory.Seconds()/1e6, "MB/s-in-memory")
			b.ReportMetric(inMemory.Seconds()/packaged.Seconds(), "ratio")
		})
	}
}

// hashBesides takes both hashes of one asset at the same time.
func hashBesides(data []byte, _, _ int) {
	var wg sync.WaitGroup
	wg.Go(func() { sha256.Sum256(data) })
	wg.Go(func() { crc32.ChecksumIEEE(data) })
	wg.Wait()
}

// hashEach takes both hashes of many assets, one after the other on each core.
func hashEach(data []byte, assets, _ int) {
	var wg sync.WaitGroup
	cores := runtime.NumCPU()
	for core := range cores {
		wg.Go(func() {
			for i := core; i < assets; i += cores {
				crc32.ChecksumIEEE(data)
				sha256.Sum256(data)
			}
		})
	}
	wg.Wait()
}

// same is a store whose objects all have the same content.
type same struct{ data []byte }

func (s *same) Stat(_ context.Context, key string) (download.Object, error) {
	return download.Object{Key: key, Version: "1", Size: int64(len(s.data))}, nil
}

func (s *same) Open(_ context.Context, _ download.Object, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(s.data[off : off+n])), nil
}

// BenchmarkPrepare makes a package of 100,000 assets ready whose checksums are
// known.
func BenchmarkPrepare(b *testing.B) {
	const n = 100_000
	for name, open := range map[string]func(testing.TB) string{"sqlite": catalogtest.SQLite, "postgres": catalogtest.Postgres} {
		b.Run(name, func(b *testing.B) {
			db := openDB(b, open(b))
			p := newPackager(b, db, newStore())
			var save []catalog.AssetChecksum
			for i := range n {
				a := benchAsset(i)
				save = append(save, catalog.AssetChecksum{Object: a.Object, Checksum: *a.Checksum})
			}
			if err := db.SaveChecksums(b.Context(), save); err != nil {
				b.Fatal(err)
			}
			for _, known := range []string{"in_job", "in_table"} {
				b.Run(known, func(b *testing.B) {
					run := 0
					var retained uint64
					b.ReportAllocs()
					for b.Loop() {
						b.StopTimer()
						run++
						assets := make([]download.Asset, n)
						for i := range assets {
							assets[i] = benchAsset(i)
							if known == "in_table" {
								assets[i].Checksum = nil
							}
						}
						runtime.GC()
						var before, after runtime.MemStats
						runtime.ReadMemStats(&before)
						b.StartTimer()
						plan := download.NewPlan("workflow-0001", fmt.Sprintf("%s-%d", known, run), assets)
						pkg, err := p.Prepare(b.Context(), plan)
						if err != nil || pkg.State != download.Ready {
							b.Fatal(pkg, err)
						}
						b.StopTimer()
						runtime.GC()
						runtime.ReadMemStats(&after)
						retained = after.HeapAlloc - before.HeapAlloc
						runtime.KeepAlive(plan)
						b.StartTimer()
					}
					b.ReportMetric(float64(retained)/n, "B-retained/entry")
				})
			}
		})
	}
}

func benchAsset(i int) download.Asset {
	path := fmt.Sprintf("tiles/tile_%06d.tif", i)
	sha := sha256.Sum256([]byte(path))
	return download.Asset{
		Role: download.Output, Path: path,
		Object: download.Object{
			Key:      "workflow-0001/job-0007/outputs/" + path,
			Version:  fmt.Sprintf("%x-%x", 1777000000000000000+i, 20_000+i),
			Size:     int64(20_000 + i),
			Modified: modified,
		},
		Checksum: &download.Checksum{CRC32: uint32(i) * 2654435761, SHA256: sha[:]},
	}
}
