package download

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// planVersion is the first byte of a stored plan. A change of the format takes
// a new number, and old ones stay readable.
const planVersion = 1

// The flags of a stored entry.
const (
	flagOutput      = 1 << iota // the role is Output
	flagCRC32                   // a CRC-32 follows
	flagSHA256                  // a SHA-256 follows
	flagNameFromKey             // the name is the key less the job's prefix
	flagPathFromKey             // the path is the name less the role's folder
)

var errCorruptPlan = errors.New("corrupt plan")

// MarshalBinary encodes the plan for storage: some 60 bytes an entry plus its
// key and SHA-256.
func (p *Plan) MarshalBinary() ([]byte, error) {
	buf := make([]byte, 0, 64+160*len(p.Entries))
	buf = append(buf, planVersion)
	buf = append(buf, p.ID[:]...)
	buf = appendString(buf, p.WorkflowID)
	buf = appendString(buf, p.JobID)
	buf = binary.AppendUvarint(buf, uint64(len(p.Entries)))
	prefix := p.keyPrefix()
	for i := range p.Entries {
		e := &p.Entries[i]
		var flags byte
		if e.Role == Output {
			flags |= flagOutput
		}
		if e.Checksum != nil {
			flags |= flagCRC32
			if e.Checksum.SHA256 != nil {
				flags |= flagSHA256
			}
		}
		if rest, ok := strings.CutPrefix(e.Object.Key, prefix); ok && rest == e.Name {
			flags |= flagNameFromKey
		}
		if e.kept() {
			flags |= flagPathFromKey
		}
		buf = append(buf, flags)
		buf = appendString(buf, e.Object.Key)
		if flags&flagNameFromKey == 0 {
			buf = appendString(buf, e.Name)
		}
		if flags&flagPathFromKey == 0 {
			buf = appendString(buf, e.Path)
		}
		buf = appendString(buf, e.Object.Version)
		buf = binary.AppendVarint(buf, e.Object.Size)
		buf = binary.AppendVarint(buf, e.Object.Modified.UnixNano())
		buf = appendString(buf, e.MediaType)
		if flags&flagCRC32 != 0 {
			buf = binary.BigEndian.AppendUint32(buf, e.Checksum.CRC32)
		}
		if flags&flagSHA256 != 0 {
			buf = append(buf, e.Checksum.SHA256...)
		}
	}
	return buf, nil
}

// UnmarshalPlan decodes what MarshalBinary encoded. It fails on anything else
// and never panics.
func UnmarshalPlan(data []byte) (*Plan, error) {
	// The strings of the plan are parts of this one, not copies of their own.
	d := decoder{data: string(data)}
	if v := d.byte(); d.err == nil && v != planVersion {
		return nil, fmt.Errorf("plan of version %d, want %d: written by a newer release", v, planVersion)
	}
	p := &Plan{}
	copy(p.ID[:], d.bytes(len(uuid.UUID{})))
	p.WorkflowID = d.string()
	p.JobID = d.string()
	n := d.uvarint()
	if n > uint64(len(d.data)) { // an entry takes more than a byte
		return nil, errCorruptPlan
	}
	p.Entries = make([]Entry, n)
	checksums := make([]Checksum, n)
	prefix := p.keyPrefix()
	for i := range p.Entries {
		e := &p.Entries[i]
		flags := d.byte()
		e.Role = Input
		if flags&flagOutput != 0 {
			e.Role = Output
		}
		e.Object.Key = d.string()
		if flags&flagNameFromKey != 0 {
			e.Name = d.cut(e.Object.Key, prefix)
		} else {
			e.Name = d.string()
		}
		if flags&flagPathFromKey != 0 {
			e.Path = d.cut(e.Name, e.Role.Dir()+"/")
		} else {
			e.Path = d.string()
		}
		e.Object.Version = d.string()
		e.Object.Size = d.varint()
		e.Object.Modified = time.Unix(0, d.varint()).UTC()
		e.MediaType = d.string()
		if flags&flagCRC32 != 0 {
			e.Checksum = &checksums[i]
			if b := d.bytes(4); d.err == nil {
				e.Checksum.CRC32 = binary.BigEndian.Uint32([]byte(b))
			}
			if flags&flagSHA256 != 0 {
				e.Checksum.SHA256 = []byte(d.bytes(sha256.Size))
			}
		}
		if d.err != nil {
			return nil, d.err
		}
	}
	if d.err == nil && d.data != "" {
		d.err = errCorruptPlan
	}
	return p, d.err
}

// keyPrefix is where the bucket keeps this job's own assets.
func (p *Plan) keyPrefix() string { return p.WorkflowID + "/" + p.JobID + "/" }

func appendString(buf []byte, s string) []byte {
	return append(binary.AppendUvarint(buf, uint64(len(s))), s...)
}

func appendChecksum(buf []byte, c *Checksum) []byte {
	if c == nil {
		return append(buf, 0)
	}
	buf = binary.BigEndian.AppendUint32(append(buf, 1), c.CRC32)
	return appendString(buf, string(c.SHA256))
}

// decoder takes values off the front of data. After the first error it returns
// zero values.
type decoder struct {
	data string
	err  error
}

func (d *decoder) bytes(n int) string {
	if d.err != nil || n < 0 || n > len(d.data) {
		d.err = errCorruptPlan
		return ""
	}
	s := d.data[:n]
	d.data = d.data[n:]
	return s
}

func (d *decoder) byte() byte {
	if s := d.bytes(1); s != "" {
		return s[0]
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		b := d.byte()
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	d.err = errCorruptPlan
	return 0
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *decoder) string() string {
	n := d.uvarint()
	if n > uint64(len(d.data)) {
		d.err = errCorruptPlan
		return ""
	}
	return d.bytes(int(n))
}

func (d *decoder) cut(s, prefix string) string {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok && d.err == nil {
		d.err = errCorruptPlan
	}
	return rest
}
