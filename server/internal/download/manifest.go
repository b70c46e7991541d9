package download

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

// ManifestName is the path of the manifest in every package, its first entry.
const ManifestName = "manifest.json"

// Layout lays out the package: the manifest, then the entries of the plan. Entry
// i of the plan is entry i+1 of the layout. It fails if a checksum is missing.
func (p *Plan) Layout() (*vzip.Layout, error) {
	entries := make([]vzip.Entry, 1, 1+len(p.Entries))
	for i := range p.Entries {
		e := &p.Entries[i]
		if e.Checksum == nil {
			return nil, fmt.Errorf("lay out package %s: no checksum for %q", p.ID, e.Name)
		}
		entries = append(entries, vzip.Entry{
			Name:     e.Name,
			Size:     e.Object.Size,
			CRC32:    e.Checksum.CRC32,
			Modified: e.Object.Modified,
		})
	}
	entries[0] = vzip.Entry{Name: ManifestName, Modified: p.Modified(), Data: p.manifest()}
	l, err := vzip.New(entries)
	if err != nil {
		return nil, fmt.Errorf("lay out package %s: %w", p.ID, err)
	}
	return l, nil
}

// manifest encodes manifest.json, an entry a line. It is written by hand because
// packages of 100,000 entries are laid out while a caller waits.
func (p *Plan) manifest() []byte {
	buf := make([]byte, 0, 256+320*len(p.Entries))
	buf = append(buf, "{\n\"job\": {\"workflow_id\": "...)
	buf = appendJSON(buf, p.WorkflowID)
	buf = append(buf, ", \"job_id\": "...)
	buf = appendJSON(buf, p.JobID)
	buf = append(buf, "},\n\"package_id\": "...)
	buf = appendJSON(buf, p.ID.String())
	buf = append(buf, ",\n\"entries\": ["...)
	for i := range p.Entries {
		e := &p.Entries[i]
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = append(buf, "\n{\"path\": "...)
		buf = appendJSON(buf, e.Name)
		if !e.kept() {
			buf = append(buf, ", \"original_path\": "...)
			buf = appendJSON(buf, e.natural())
		}
		buf = append(buf, ", \"role\": "...)
		buf = appendJSON(buf, string(e.Role))
		buf = append(buf, ", \"size\": "...)
		buf = strconv.AppendInt(buf, e.Object.Size, 10)
		buf = append(buf, ", \"crc32\": \""...)
		c := e.Checksum.CRC32
		buf = hex.AppendEncode(buf, []byte{byte(c >> 24), byte(c >> 16), byte(c >> 8), byte(c)})
		if e.Checksum.SHA256 != nil {
			buf = append(buf, "\", \"sha256\": \""...)
			buf = hex.AppendEncode(buf, e.Checksum.SHA256)
		}
		buf = append(buf, "\", \"media_type\": "...)
		buf = appendJSON(buf, mediaType(&e.Asset))
		buf = append(buf, ", \"modified\": \""...)
		buf = e.Object.Modified.UTC().AppendFormat(buf, time.RFC3339)
		buf = append(buf, "\"}"...)
	}
	return append(buf, "\n]\n}\n"...)
}

// appendJSON appends s as a JSON string. Plain ASCII, nearly every name, needs
// no encoder.
func appendJSON(buf []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(s) // a string always encodes
			return append(buf, quoted...)
		}
	}
	buf = append(buf, '"')
	buf = append(buf, s...)
	return append(buf, '"')
}

// mediaTypes is fixed, rather than the host's table: what it says becomes part
// of the package's bytes, which must be the same everywhere.
var mediaTypes = map[string]string{
	".csv":     "text/csv",
	".geojson": "application/geo+json",
	".gpkg":    "application/geopackage+sqlite3",
	".h5":      "application/x-hdf5",
	".hdf5":    "application/x-hdf5",
	".html":    "text/html",
	".jp2":     "image/jp2",
	".jpeg":    "image/jpeg",
	".jpg":     "image/jpeg",
	".json":    "application/json",
	".kml":     "application/vnd.google-earth.kml+xml",
	".kmz":     "application/vnd.google-earth.kmz",
	".md":      "text/markdown",
	".nc":      "application/x-netcdf",
	".parquet": "application/vnd.apache.parquet",
	".pdf":     "application/pdf",
	".png":     "image/png",
	".tif":     "image/tiff",
	".tiff":    "image/tiff",
	".txt":     "text/plain",
	".xml":     "application/xml",
	".yaml":    "application/yaml",
	".yml":     "application/yaml",
	".zip":     "application/zip",
}

// mediaType returns the asset's declared type, or that of its extension.
func mediaType(a *Asset) string {
	if a.MediaType != "" {
		return a.MediaType
	}
	ext := path.Ext(a.Path)
	if t, ok := mediaTypes[ext]; ok {
		return t
	}
	if t, ok := mediaTypes[strings.ToLower(ext)]; ok {
		return t
	}
	return "application/octet-stream"
}
