package server

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
)

// jobFile is the optional manifest in a job's folder, see api/job.schema.json.
const (
	jobFile    = "job.json"
	maxJobFile = 256 << 20
)

// jobAsset is an asset as job.json has it.
type jobAsset struct {
	Role      Role    `json:"role"`
	Path      string  `json:"path"`
	Key       string  `json:"key"`
	Size      *int64  `json:"size"`
	CRC32     string  `json:"crc32"`
	SHA256    string  `json:"sha256"`
	MediaType *string `json:"media_type"`
}

// parseJob reads a job.json. It reports whether the file lists the assets; if
// not, the folders do. An error names the line.
func parseJob(data []byte, prefix string) (job Job, listed bool, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	line := func(offset int64) int { return 1 + bytes.Count(data[:min(int(offset), len(data))], []byte("\n")) }
	fail := func(err error) (Job, bool, error) {
		offset := d.InputOffset()
		if e, ok := errors.AsType[*json.SyntaxError](err); ok {
			offset = e.Offset
		} else if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			offset, err = int64(len(data)), errors.New("the file ends too early")
		}
		return Job{}, false, fmt.Errorf("line %d: %w", line(offset), err)
	}
	if err := expect(d, json.Delim('{')); err != nil {
		return fail(err)
	}
	seen := make(map[string]bool)
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return fail(err)
		}
		name, _ := token.(string)
		if seen[name] {
			return fail(fmt.Errorf("%q stands twice", name))
		}
		seen[name] = true
		switch name {
		case "$schema":
			err = d.Decode(new(string))
		case "status":
			err = d.Decode(&job.Status)
			if err == nil && job.Status != JobRunning && job.Status != JobSucceeded && job.Status != JobFailed {
				err = fmt.Errorf("status %q, want running, succeeded or failed", job.Status)
			}
		case "assets":
			listed = true
			job.Assets, err = parseAssets(d, prefix)
		default:
			err = fmt.Errorf("unknown member %q", name)
		}
		if err != nil {
			return fail(err)
		}
	}
	if _, err := d.Token(); err != nil {
		return fail(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fail(errors.New("something follows the end of the job"))
	}
	if job.Status == "" {
		return fail(errors.New("status is missing"))
	}
	return job, listed, nil
}

func expect(d *json.Decoder, want json.Delim) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	if token != want {
		return fmt.Errorf("%v, want %v", token, want)
	}
	return nil
}

func parseAssets(d *json.Decoder, prefix string) ([]Asset, error) {
	if err := expect(d, json.Delim('[')); err != nil {
		return nil, err
	}
	assets := []Asset{}
	seen := make(map[string]bool)
	for d.More() {
		var a jobAsset
		if err := d.Decode(&a); err != nil {
			return nil, fmt.Errorf("asset %d: %w", len(assets)+1, err)
		}
		asset, err := a.asset(prefix)
		if err != nil {
			return nil, fmt.Errorf("asset %d: %w", len(assets)+1, err)
		}
		name := a.Role.Dir() + "/" + a.Path
		if seen[name] {
			return nil, fmt.Errorf("asset %d: %s %s stands twice", len(assets)+1, a.Role, a.Path)
		}
		seen[name] = true
		assets = append(assets, asset)
	}
	return assets, expect(d, json.Delim(']'))
}

func (a *jobAsset) asset(prefix string) (Asset, error) {
	asset := Asset{Role: a.Role, Path: a.Path, Object: Object{Key: a.Key, Size: -1}}
	if a.Role != Input && a.Role != Output {
		return Asset{}, fmt.Errorf("role %q, want input or output", a.Role)
	}
	if a.Path == "" {
		return Asset{}, errors.New("path is missing")
	}
	if a.Key == "" {
		asset.Object.Key = prefix + a.Role.Dir() + "/" + a.Path
	}
	if !fs.ValidPath(asset.Object.Key) {
		return Asset{}, fmt.Errorf("key %q does not name an object of the bucket", asset.Object.Key)
	}
	if a.Size != nil {
		if *a.Size < 0 {
			return Asset{}, fmt.Errorf("size %d", *a.Size)
		}
		asset.Object.Size = *a.Size
	}
	if a.MediaType != nil {
		if !validMediaType(*a.MediaType) {
			return Asset{}, fmt.Errorf("media_type %q", *a.MediaType)
		}
		asset.MediaType = *a.MediaType
	}
	if a.CRC32 != "" {
		crc, err := strconv.ParseUint(a.CRC32, 16, 32)
		if err != nil || len(a.CRC32) != 8 {
			return Asset{}, fmt.Errorf("crc32 %q, want eight hexadecimal digits", a.CRC32)
		}
		asset.Checksum = &Checksum{CRC32: uint32(crc)}
	}
	if a.SHA256 != "" {
		sum, err := hex.DecodeString(a.SHA256)
		if err != nil || len(sum) != 32 {
			return Asset{}, fmt.Errorf("sha256 %q, want 64 hexadecimal digits", a.SHA256)
		}
		// On its own it cannot make the package; reading finds both again.
		if asset.Checksum != nil {
			asset.Checksum.SHA256 = sum
		}
	}
	return asset, nil
}
