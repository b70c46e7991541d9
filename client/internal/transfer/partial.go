package transfer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// What is beside a file while it is being fetched.
const (
	PartialSuffix = ".downlink-part" // its content
	JournalSuffix = ".downlink"      // which file it is, and what of it is there
)

// ErrBusy says that another process is fetching the same file.
var ErrBusy = errors.New("another download is writing this file")

// Partial is a file that is being fetched. It takes its name when it is whole:
// until then what there is of it and a journal are beside it, from which a later
// run goes on after any end of this one. The journal never claims what is not
// safely on the disk. It is safe for concurrent use.
type Partial struct {
	path    string
	file    *os.File
	id      string
	version Version
	dropped bool

	mu   sync.Mutex
	done rangeSet
}

// OpenPartial opens what an earlier run has left of the version of the file, or
// begins it anew. It checks that there is room on the disk and holds a lock until
// it is closed.
func OpenPartial(path, id string, v Version) (*Partial, error) {
	name := path + PartialSuffix
	for _, beside := range []string{name, path + JournalSuffix} {
		if info, err := os.Lstat(beside); err == nil && !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is in the way: it is not a file", beside)
		}
	}
	file, err := openLocked(name)
	if err != nil {
		return nil, err
	}
	p := &Partial{path: path, file: file, id: id, version: v}
	if err := p.begin(); err != nil {
		file.Close()
		return nil, err
	}
	return p, nil
}

// openLocked opens or creates the file and locks it. The process that had the
// lock may have given the file another name meanwhile.
func openLocked(name string) (*os.File, error) {
	for {
		file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666)
		if err != nil {
			return nil, err
		}
		if err := lock(file); err != nil {
			file.Close()
			return nil, err
		}
		opened, err1 := file.Stat()
		named, err2 := os.Lstat(name)
		if err1 == nil && err2 == nil && os.SameFile(opened, named) {
			return file, nil
		}
		file.Close()
		if err := errors.Join(err1, err2); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// begin takes over what the journal vouches for, if that is of this version.
func (p *Partial) begin() error {
	info, err := p.file.Stat()
	if err != nil {
		return err
	}
	data, err := os.ReadFile(p.path + JournalSuffix)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if j, ok := decodeJournal(data); ok && j.ID == p.id && j.version() == p.version && info.Size() == p.version.Size {
		p.done = j.Done
		return preallocate(p.file, p.version.Size)
	}
	p.dropped = info.Size() > 0
	if err := p.Reset(); err != nil {
		return err
	}
	if p.version.Size < 0 {
		return nil
	}
	if err := CheckRoom(filepath.Dir(p.path), p.version.Size); err != nil {
		p.discard()
		return err
	}
	if err := preallocate(p.file, p.version.Size); err != nil {
		p.discard()
		return err
	}
	return nil
}

// CheckRoom returns an error if the disk that a folder is on has no room for n
// bytes.
func CheckRoom(dir string, n int64) error {
	free, err := freeSpace(dir)
	if err != nil {
		return nil //nolint:nilerr // not every file system says; writing will tell
	}
	if uint64(n) > free {
		return fmt.Errorf("no room on the disk of %s: %d bytes are needed, %d are free", dir, n, free)
	}
	return nil
}

// Dropped reports whether an earlier run had left something of no use: another
// version, or what no journal vouches for.
func (p *Partial) Dropped() bool { return p.dropped }

// Done is how many bytes are there.
func (p *Partial) Done() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done.total()
}

// File is the content, to be read.
func (p *Partial) File() *os.File { return p.file }

// missing returns what is not there.
func (p *Partial) missing() []Range {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done.missing(p.version.Size)
}

// writeAt writes a piece, after which it counts as being there.
func (p *Partial) writeAt(b []byte, off int64) error {
	if _, err := p.file.WriteAt(b, off); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done.add(Range{off, off + int64(len(b))})
	return nil
}

// writeTail writes the end of the file.
func (p *Partial) writeTail(tail []byte) error {
	if len(tail) == 0 {
		return nil
	}
	return p.writeAt(tail, p.version.Size-int64(len(tail)))
}

// setSize sets the size that was not known before.
func (p *Partial) setSize(n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.version.Size = n
	return p.file.Truncate(n)
}

// Forget takes ranges for missing, because what is there turned out to be wrong.
func (p *Partial) Forget(ranges ...Range) error {
	p.mu.Lock()
	for _, r := range ranges {
		p.done.remove(r)
	}
	p.mu.Unlock()
	return p.checkpoint()
}

// Reset forgets everything.
func (p *Partial) Reset() error {
	if err := os.Remove(p.path + JournalSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	p.mu.Lock()
	p.done = nil
	p.mu.Unlock()
	return p.file.Truncate(max(0, p.version.Size))
}

// checkpoint makes what is there safe and then writes that into the journal.
func (p *Partial) checkpoint() error {
	if p.version.Size < 0 || !p.version.strong() {
		return nil // a later run could not be sure of the version
	}
	p.mu.Lock()
	done := slices.Clone(p.done)
	p.mu.Unlock()
	if err := p.file.Sync(); err != nil {
		return err
	}
	name := p.path + JournalSuffix
	j := journal{Format: journalFormat, ID: p.id, Size: p.version.Size, ETag: p.version.ETag, LastModified: p.version.LastModified, Done: done}
	if err := writeSynced(name+".new", j.encode()); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return os.Rename(name+".new", name)
}

func writeSynced(name string, data []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// Commit makes the file safe, gives it its name in one step, and ends the
// partial.
func (p *Partial) Commit() error {
	if err := p.file.Sync(); err != nil {
		return err
	}
	if !renamesOpenFiles {
		if err := p.file.Close(); err != nil {
			return err
		}
	}
	if err := os.Rename(p.path+PartialSuffix, p.path); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(p.path)); err != nil {
		return err
	}
	if err := os.Remove(p.path + JournalSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// discard removes what has not begun.
func (p *Partial) discard() {
	_ = os.Remove(p.path + JournalSuffix)
	_ = os.Remove(p.path + PartialSuffix)
}

// Close releases the file and the lock. What is there stays for a later run.
func (p *Partial) Close() error {
	if err := p.file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}

// journal says what a partial file is, and which ranges of it are there. On the
// disk it is a line of JSON and a line with the checksum of that.
type journal struct {
	Format       string   `json:"format"`
	ID           string   `json:"id"`
	Size         int64    `json:"size"`
	ETag         string   `json:"etag,omitempty"`
	LastModified string   `json:"last_modified,omitempty"`
	Done         rangeSet `json:"done"`
}

const journalFormat = "downlink-journal-1"

func (j *journal) version() Version {
	return Version{Size: j.Size, ETag: j.ETag, LastModified: j.LastModified}
}

func (j *journal) encode() []byte {
	line, _ := json.Marshal(j) // cannot fail for these types
	return fmt.Appendf(nil, "%s\n%08x\n", line, crc32.ChecksumIEEE(line))
}

// decodeJournal returns false for what no encode has written.
func decodeJournal(data []byte) (journal, bool) {
	line, sum, _ := bytes.Cut(data, []byte("\n"))
	var j journal
	if string(sum) != fmt.Sprintf("%08x\n", crc32.ChecksumIEEE(line)) || json.Unmarshal(line, &j) != nil {
		return journal{}, false
	}
	return j, j.Format == journalFormat && j.Done.valid(j.Size)
}
