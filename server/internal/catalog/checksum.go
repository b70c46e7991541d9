package catalog

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server/internal/download"
)

// checksumChunk is how many assets one statement looks up or stores. Lists go to
// SQLite as JSON: it is many times faster there than a parameter for each value.
const checksumChunk = 5000

// Checksums returns what is stored of the objects: for each its checksum, or nil
// if there is none for that version and size.
func (db *DB) Checksums(ctx context.Context, objects []download.Object) ([]*download.Checksum, error) {
	found := make([]*download.Checksum, len(objects))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for start := 0; start < len(objects); start += checksumChunk {
		end := min(start+checksumChunk, len(objects))
		g.Go(func() error { return db.checksums(gctx, objects[start:end], found[start:end]) })
	}
	if err := g.Wait(); err != nil {
		return nil, fault(ctx, "look up checksums", err)
	}
	return found, nil
}

func (db *DB) checksums(ctx context.Context, objects []download.Object, found []*download.Checksum) error {
	// The join goes over the list, whatever the planner thinks of its length.
	statement := `SELECT l.key, c.size, c.crc32, c.sha256 FROM json_each($1) l CROSS JOIN asset_checksums c
		WHERE c.object_key = l.value->>0 AND c.version = l.value->>1`
	if db.dialect == Postgres {
		statement = `SELECT l.n - 1, c.size, c.crc32, c.sha256 FROM json_array_elements($1::json) WITH ORDINALITY l(value, n)
			JOIN asset_checksums c ON c.object_key = l.value->>0 AND c.version = l.value->>1`
	}
	list := make([][2]string, len(objects))
	for i, o := range objects {
		if storable(o) {
			list[i] = [2]string{o.Key, o.Version}
		}
	}
	arg, err := json.Marshal(list)
	if err != nil {
		return err
	}
	rows, err := db.read.QueryContext(ctx, statement, string(arg))
	if err != nil {
		return err
	}
	defer rows.Close()
	sums := make([]download.Checksum, 0, len(objects)) // few allocations instead of many
	var sha256s []byte
	for rows.Next() {
		var i int
		var size int64
		var crc32 uint32
		var sha256 sql.RawBytes
		if err := rows.Scan(&i, &size, &crc32, &sha256); err != nil {
			return err
		}
		if size != objects[i].Size {
			continue
		}
		sum := download.Checksum{CRC32: crc32}
		if sha256 != nil {
			n := len(sha256s)
			sha256s = append(sha256s, sha256...)
			sum.SHA256 = sha256s[n:len(sha256s):len(sha256s)]
		}
		sums = append(sums, sum)
		found[i] = &sums[len(sums)-1]
	}
	return rows.Err()
}

// AssetChecksum is what was found out about an object by reading it.
type AssetChecksum struct {
	Object   download.Object
	Checksum download.Checksum
}

// SaveChecksums stores checksums, all of them or none, in place of those stored
// before, and drops the cursors of their objects.
func (db *DB) SaveChecksums(ctx context.Context, checksums []AssetChecksum) error {
	if len(checksums) == 0 {
		return nil
	}
	err := db.tx(ctx, func(tx *sql.Tx) error {
		for len(checksums) > 0 {
			n := min(checksumChunk, len(checksums))
			if err := db.saveChecksums(ctx, tx, checksums[:n]); err != nil {
				return err
			}
			checksums = checksums[n:]
		}
		return nil
	})
	if err != nil {
		return fault(ctx, "store checksums", err)
	}
	return nil
}

func (db *DB) saveChecksums(ctx context.Context, tx *sql.Tx, checksums []AssetChecksum) error {
	const columns = `(object_key, version, size, crc32, sha256)`
	const conflict = ` ON CONFLICT (object_key, version) DO UPDATE
		SET size = excluded.size, crc32 = excluded.crc32, sha256 = excluded.sha256`
	type row struct {
		Key     string  `json:"k"`
		Version string  `json:"v"`
		Size    int64   `json:"s"`
		CRC32   uint32  `json:"c"`
		SHA256  *string `json:"h"`
	}
	// No object twice: PostgreSQL refuses to update a row twice in a statement.
	seen := make(map[[2]string]bool, len(checksums))
	list := make([]row, 0, len(checksums))
	for _, c := range checksums {
		name := [2]string{c.Object.Key, c.Object.Version}
		if seen[name] || !storable(c.Object) {
			continue
		}
		seen[name] = true
		r := row{Key: c.Object.Key, Version: c.Object.Version, Size: c.Object.Size, CRC32: c.Checksum.CRC32}
		if c.Checksum.SHA256 != nil {
			digits := hex.EncodeToString(c.Checksum.SHA256)
			r.SHA256 = &digits
		}
		list = append(list, r)
	}
	arg, err := json.Marshal(list)
	if err != nil {
		return err
	}
	insert := `INSERT INTO asset_checksums ` + columns + `
		SELECT value->>'k', value->>'v', value->>'s', value->>'c', unhex(value->>'h') FROM json_each($1) WHERE true` + conflict
	clean := `DELETE FROM asset_cursors WHERE (object_key, version) IN (SELECT value->>'k', value->>'v' FROM json_each($1))`
	if db.dialect == Postgres {
		insert = `INSERT INTO asset_checksums ` + columns + `
			SELECT k, v, s, c, decode(h, 'hex') FROM json_to_recordset($1::json) AS l(k text, v text, s bigint, c bigint, h text)` + conflict
		clean = `DELETE FROM asset_cursors WHERE (object_key, version) IN (
			SELECT k, v FROM json_to_recordset($1::json) AS l(k text, v text))`
	}
	for _, statement := range []string{insert, clean} {
		if _, err := tx.ExecContext(ctx, statement, string(arg)); err != nil {
			return err
		}
	}
	return nil
}

// storable reports whether the object is pinned and its name can be kept as text
// with an index on it in both databases. The rare others are read again each
// time.
func storable(o download.Object) bool {
	return o.Version != "" && len(o.Key)+len(o.Version) <= 2000 && storableText(o.Key) && storableText(o.Version)
}

func storableText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// SaveCursor stores how far the reading of an object has come, in the caller's
// own form, in place of what was stored before.
func (db *DB) SaveCursor(ctx context.Context, o download.Object, cursor []byte) error {
	if !storable(o) {
		return nil
	}
	_, err := db.exec(ctx, "store cursor",
		`INSERT INTO asset_cursors (object_key, version, state, updated_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (object_key, version) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at`,
		o.Key, o.Version, cursor, micros(db.now()))
	return err
}

// Cursor returns what SaveCursor stored for this version of the object, nil if
// that is nothing.
func (db *DB) Cursor(ctx context.Context, o download.Object) ([]byte, error) {
	if !storable(o) {
		return nil, nil
	}
	var cursor []byte
	err := db.read.QueryRowContext(ctx, `SELECT state FROM asset_cursors WHERE object_key = $1 AND version = $2`,
		o.Key, o.Version).Scan(&cursor)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fault(ctx, "read cursor", err)
	}
	return cursor, nil
}
