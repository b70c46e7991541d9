// Command makesample writes the sample bucket: one small job with two synthetic
// GeoTIFFs. Its output is checked in; run it again with
//
//	go run ./server/testdata/makesample server/testdata/sample
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: makesample FOLDER")
		os.Exit(2)
	}
	job := filepath.Join(os.Args[1], "W1", "J1")
	for name, data := range map[string][]byte{
		"inputs/scene.tif":              scene(),
		"inputs/aoi.geojson":            []byte(aoi),
		"outputs/ndvi.tif":              ndvi(),
		"outputs/report/summary.json":   []byte("{\"mean_ndvi\": 0.31, \"cloud_cover\": 0.04}\n"),
		"outputs/report/Übersicht.txt":  []byte("Mittlerer NDVI: 0,31\n"),
		"outputs/report/warnings.log":   nil,
		"outputs/tiles/0/0/legend.json": []byte("{\"min\": -1, \"max\": 1}\n"),
	} {
		path := filepath.Join(job, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			fatal(err)
		}
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "makesample:", err)
	os.Exit(1)
}

const aoi = `{"type": "Feature", "properties": {"name": "sample"}, "geometry": {"type": "Polygon",
 "coordinates": [[[77.50, 12.90], [77.75, 12.90], [77.75, 13.15], [77.50, 13.15], [77.50, 12.90]]]}}
`

// scene is a raster of three bands of bytes, pixel-interleaved.
func scene() []byte {
	const side = 200
	pixels := make([]byte, 0, 3*side*side)
	for y := range side {
		for x := range side {
			v := terrain(x, y)
			pixels = append(pixels, byte(90+60*v), byte(110+80*v), byte(70+40*v))
		}
	}
	return geotiff(raster{side: side, bands: 3, bits: 8, format: 1, pixels: pixels})
}

// ndvi is a raster of one band of 32-bit floats.
func ndvi() []byte {
	const side = 200
	pixels := make([]byte, 0, 4*side*side)
	for y := range side {
		for x := range side {
			pixels = binary.LittleEndian.AppendUint32(pixels, math.Float32bits(float32(terrain(x, y))))
		}
	}
	return geotiff(raster{side: side, bands: 1, bits: 32, format: 3, pixels: pixels})
}

func terrain(x, y int) float64 {
	return math.Sin(float64(x)/17) * math.Cos(float64(y)/23)
}

type raster struct {
	side, bands, bits, format int // format as in the TIFF tag SampleFormat
	pixels                    []byte
}

// geotiff encodes a raster over the sample's area in WGS 84, as one strip (TIFF
// 6.0, GeoTIFF 1.1).
func geotiff(r raster) []byte {
	type tag struct {
		id, kind uint16
		values   any
	}
	const short, long, double = 3, 4, 12
	side, n := uint32(r.side), uint16(r.bands)
	perBand := func(v int) []uint16 {
		s := make([]uint16, n)
		for i := range s {
			s[i] = uint16(v)
		}
		return s
	}
	photometric := uint16(1) // black is zero
	if r.bands == 3 {
		photometric = 2 // RGB
	}
	scale := 0.25 / float64(r.side)
	tags := []tag{
		{256, long, []uint32{side}},
		{257, long, []uint32{side}},
		{258, short, perBand(r.bits)},
		{259, short, []uint16{1}}, // no compression
		{262, short, []uint16{photometric}},
		{273, long, []uint32{0}}, // where the strip is, below
		{277, short, []uint16{n}},
		{278, long, []uint32{side}},
		{279, long, []uint32{uint32(len(r.pixels))}},
		{284, short, []uint16{1}}, // interleaved
		{339, short, perBand(r.format)},
		{33550, double, []float64{scale, scale, 0}},
		{33922, double, []float64{0, 0, 0, 77.50, 13.15, 0}},
		{34735, short, []uint16{1, 1, 1, 3, 1024, 0, 1, 2, 1025, 0, 1, 1, 2048, 0, 1, 4326}},
	}
	directory := 8 + 2 + 12*len(tags) + 4
	var extra bytes.Buffer
	var out bytes.Buffer
	le := binary.LittleEndian
	out.Write([]byte("II*\x00\x08\x00\x00\x00"))
	write := func(w *bytes.Buffer, v any) { _ = binary.Write(w, le, v) } // a buffer takes everything
	write(&out, uint16(len(tags)))
	strip := -1
	for _, t := range tags {
		size := binary.Size(t.values)
		count := uint32(size / map[uint16]int{short: 2, long: 4, double: 8}[t.kind])
		write(&out, t.id)
		write(&out, t.kind)
		write(&out, count)
		if t.id == 273 {
			strip = out.Len()
		}
		if size <= 4 {
			write(&out, t.values)
			out.Write(make([]byte, 4-size))
			continue
		}
		write(&out, uint32(directory+extra.Len()))
		write(&extra, t.values)
		extra.Write(make([]byte, extra.Len()%2))
	}
	write(&out, uint32(0)) // no further directory
	data := append(out.Bytes(), extra.Bytes()...)
	le.PutUint32(data[strip:], uint32(len(data)))
	return append(data, r.pixels...)
}
