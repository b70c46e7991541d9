package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// manifestName is where the packages of downlinkd begin. Others may have a file
// of that name too, which is then a file like any other.
const manifestName = "manifest.json"

// manifestEntry is what the manifest has of one file.
type manifestEntry struct {
	Path     string    `json:"path"`
	Size     int64     `json:"size"`
	CRC32    string    `json:"crc32"`
	SHA256   string    `json:"sha256"`
	Modified time.Time `json:"modified"`
}

// sums returns the checksums. The CRC-32 is 0 if it is not known, the SHA-256 nil.
func (m *manifestEntry) sums() (crc uint32, hasCRC bool, sha *[32]byte, err error) {
	if m.CRC32 != "" {
		v, err := strconv.ParseUint(m.CRC32, 16, 32)
		if err != nil {
			return 0, false, nil, errors.New("has a CRC-32 in the manifest that is not one")
		}
		crc, hasCRC = uint32(v), true
	}
	if m.SHA256 != "" {
		b, err := hex.DecodeString(m.SHA256)
		if err != nil || len(b) != 32 {
			return 0, false, nil, errors.New("has a SHA-256 in the manifest that is not one")
		}
		sha = (*[32]byte)(b)
	}
	return crc, hasCRC, sha, nil
}

// maxManifestStep bounds what is read of a manifest for one of its values.
const maxManifestStep = 1 << 20

// stepReader fails if too much is read for one value. It keeps the error of the
// reader below, which package json mixes with its own.
type stepReader struct {
	r    io.Reader
	left int
	err  error
}

func (s *stepReader) Read(p []byte) (int, error) {
	if s.left <= 0 {
		return 0, errors.New("the manifest has a value that is too long")
	}
	n, err := s.r.Read(p[:min(len(p), s.left)])
	s.left -= n
	if err != io.EOF {
		s.err = err
	}
	return n, err
}

// readManifest reads all of r and calls each for every file that the manifest
// lists. It reports whether it is a manifest of downlinkd; each may have been
// called if it is not. The error is that of r.
func readManifest(r io.Reader, each func(*manifestEntry) error) (ours bool, err error) {
	steps := &stepReader{r: r}
	ours, err = decodeManifest(json.NewDecoder(steps), &steps.left, each)
	_, drainErr := io.Copy(io.Discard, r)
	if err := cmp.Or(steps.err, drainErr); err != nil {
		return false, err
	}
	return ours && err == nil, nil
}

// decodeManifest sets left before each value that it decodes. Members that it
// does not know are passed over.
func decodeManifest(d *json.Decoder, left *int, each func(*manifestEntry) error) (ours bool, err error) {
	expect := func(want json.Delim) error {
		*left = maxManifestStep
		got, err := d.Token()
		if err == nil && got != want {
			err = fmt.Errorf("found %v instead of %v", got, want)
		}
		return err
	}
	if err := expect('{'); err != nil {
		return false, err
	}
	var id string
	var hasEntries bool
	for d.More() {
		*left = maxManifestStep
		member, err := d.Token()
		if err != nil {
			return false, err
		}
		switch member {
		case "package_id":
			err = d.Decode(&id)
		case "entries":
			hasEntries = true
			err = decodeEntries(d, left, expect, each)
		default:
			var ignored json.RawMessage
			err = d.Decode(&ignored)
		}
		if err != nil {
			return false, err
		}
	}
	return id != "" && hasEntries, expect('}')
}

func decodeEntries(d *json.Decoder, left *int, expect func(json.Delim) error, each func(*manifestEntry) error) error {
	if err := expect('['); err != nil {
		return err
	}
	for n := 0; d.More(); n++ {
		if n == maxEntries {
			return errors.New("the manifest has too many entries")
		}
		*left = maxManifestStep
		var m manifestEntry
		if err := d.Decode(&m); err != nil {
			return err
		}
		if err := each(&m); err != nil {
			return err
		}
	}
	return expect(']')
}

// manifest returns the file that can be the manifest of downlinkd.
func (d *directory) manifest() *entry {
	if e := d.find(manifestName); e != nil && e.offset == 0 && !e.isDir && e.unsupported == "" {
		return e
	}
	return nil
}

// describe reads and checks the manifest of a package, adds what it has to the
// entries, and collects where it disagrees with them. It reports whether there is
// one; a file of the same name that is something else is not.
func describe(ctx context.Context, src source, d *directory, found *problems) (ours bool, err error) {
	e := d.manifest()
	if e == nil {
		return false, nil
	}
	body, err := src.ReadRange(ctx, 0, e.limit)
	if err != nil {
		return false, err
	}
	defer body.Close()
	var header bytes.Buffer
	if _, err := e.skipLocalHeader(io.TeeReader(body, &header)); err != nil {
		return false, found.take(err)
	}
	ours, err = d.describe(e.contentBehind(body), found)
	if ours { // and so exact, from now on
		_, err = e.skipLocalHeader(&header)
	}
	return ours, found.take(err)
}

// describe is what the function of that name does, of the manifest in r. The
// error is that of r.
func (d *directory) describe(r io.Reader, found *problems) (ours bool, err error) {
	type knowledge struct {
		sha256   *[32]byte
		modified int64
		listed   bool
	}
	known := make([]knowledge, len(d.entries))
	var wrong problems
	ours, err = readManifest(r, func(m *manifestEntry) error {
		i := d.from(m.Path)
		if i == len(d.entries) || d.entries[i].name != m.Path || d.entries[i].isDir {
			wrong.add(m.Path, "is in the manifest, but not in the package")
			return nil
		}
		e, k := &d.entries[i], &known[i]
		crc, hasCRC, sha, err := m.sums()
		switch {
		case err != nil:
			wrong.add(e.name, err.Error())
		case k.listed:
			wrong.add(e.name, "is in the manifest twice")
		case m.Size != e.size:
			wrong.add(e.name, fmt.Sprintf("has %d bytes in the manifest and %d in the package", m.Size, e.size))
		case hasCRC && crc != e.crc:
			wrong.add(e.name, fmt.Sprintf("has the CRC-32 %08x in the manifest and %08x in the package", crc, e.crc))
		}
		*k = knowledge{sha256: sha, listed: true, modified: e.modified}
		if !m.Modified.IsZero() {
			k.modified = m.Modified.Unix()
		}
		return nil
	})
	if err != nil || !ours {
		return false, err
	}
	for i := range d.entries {
		e, k := &d.entries[i], &known[i]
		e.exact = true
		switch {
		case k.listed:
			e.sha256, e.modified = k.sha256, k.modified
		case !e.isDir && e.name != manifestName:
			wrong.add(e.name, "is in the package, but not in the manifest")
		}
	}
	found.merge(&wrong)
	return true, nil
}
