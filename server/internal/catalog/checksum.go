package catalog

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server/internal/download"
)

// checksumChunk is how many assets one statement looks up or stores.
const checksumChunk = 5000

// Checksums returns what is stored of the objects: for each its checksum, or nil
// if there is none for that version and size.
func (db *DB) Checksums(ctx context.Context, objects []download.Object) ([]*download.Checksum, error) {
	found := make([]*download.Checksum, len(objects))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2) // and leave connections to others
	for start := 0; start < len(objects); start += checksumChunk {
		end := min(start+checksumChunk, len(objects))
		g.Go(func() error { return db.checksums(gctx, objects[start:end], found[start:end]) })
	}
	if err := g.Wait(); err != nil {
		return nil, fault(ctx, "look up checksums", err)
	}
	return found, nil
}

// lookup is the looking up of some objects.
type lookup struct {
	objects []download.Object
	found   []*download.Checksum
	sums    []download.Checksum // few allocations instead of many
	sha256s []byte
}

// answer takes what is stored for object i, if it was of that size.
func (l *lookup) answer(i int, size int64, crc32 uint32, sha256 []byte) {
	if size != l.objects[i].Size {
		return
	}
	sum := download.Checksum{CRC32: crc32}
	if sha256 != nil {
		n := len(l.sha256s)
		l.sha256s = append(l.sha256s, sha256...)
		sum.SHA256 = l.sha256s[n:len(l.sha256s):len(l.sha256s)]
	}
	l.sums = append(l.sums, sum)
	l.found[i] = &l.sums[len(l.sums)-1]
}

func (db *DB) checksums(ctx context.Context, objects []download.Object, found []*download.Checksum) error {
	l := &lookup{objects: objects, found: found, sums: make([]download.Checksum, 0, len(objects))}
	answered := 0
	if db.dialect == SQLite {
		var err error
		if answered, err = db.scanChecksums(ctx, l); err != nil {
			return err
		}
	}
	return db.joinChecksums(ctx, l, answered)
}

// scanChecksums looks up objects that are in the order of their keys, as those of
// one folder are, by reading what is stored from the first of them to the last.
// It takes a third of the time of a join, unless much else is stored in between.
// It returns how many it has looked up.
func (db *DB) scanChecksums(ctx context.Context, l *lookup) (int, error) {
	n := 0
	for n < len(l.objects) && storable(l.objects[n]) && (n == 0 || l.objects[n-1].Key <= l.objects[n].Key) {
		n++
	}
	if n < 2 {
		return 0, nil
	}
	limit := 2 * n
	rows, err := db.read.QueryContext(ctx, `SELECT object_key, version, size, crc32, sha256 FROM asset_checksums
		WHERE object_key >= $1 AND object_key <= $2 ORDER BY object_key, version LIMIT $3`,
		l.objects[0].Key, l.objects[n-1].Key, limit)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	i, read := 0, 0
	for ; rows.Next(); read++ {
		var key, version, sha256 sql.RawBytes
		var size int64
		var crc32 uint32
		if err := rows.Scan(&key, &version, &size, &crc32, &sha256); err != nil {
			return 0, err
		}
		for i < n && l.objects[i].Key < string(key) {
			i++
		}
		for j := i; j < n && l.objects[j].Key == string(key); j++ {
			if l.objects[j].Version == string(version) {
				l.answer(j, size, crc32, sha256)
			}
		}
	}
	if read < limit {
		i = n
	}
	return i, rows.Err()
}

// joinChecksums looks up the objects from one on, each on its own.
func (db *DB) joinChecksums(ctx context.Context, l *lookup, from int) error {
	if from == len(l.objects) {
		return nil
	}
	keys, versions := make([]string, len(l.objects)-from), make([]string, len(l.objects)-from)
	for i, o := range l.objects[from:] {
		if storable(o) {
			keys[i], versions[i] = o.Key, o.Version
		}
	}
	var rows *sql.Rows
	var err error
	if db.dialect == Postgres {
		rows, err = db.read.QueryContext(ctx, `SELECT l.n - 1, c.size, c.crc32, c.sha256
			FROM unnest($1::text[], $2::text[]) WITH ORDINALITY l(object_key, version, n)
			JOIN asset_checksums c ON c.object_key = l.object_key AND c.version = l.version`, keys, versions)
	} else {
		list := make([][2]string, len(keys))
		for i := range list {
			list[i] = [2]string{keys[i], versions[i]}
		}
		var arg []byte
		if arg, err = json.Marshal(list); err != nil {
			return err
		}
		// The join goes over the list, whatever the planner thinks of its length.
		rows, err = db.read.QueryContext(ctx, `SELECT l.key, c.size, c.crc32, c.sha256
			FROM json_each($1) l CROSS JOIN asset_checksums c
			ON c.object_key = l.value->>0 AND c.version = l.value->>1`, string(arg))
	}
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var i int
		var size int64
		var crc32 uint32
		var sha256 sql.RawBytes
		if err := rows.Scan(&i, &size, &crc32, &sha256); err != nil {
			return err
		}
		l.answer(from+i, size, crc32, sha256)
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
	// No object twice: PostgreSQL refuses to update a row twice in a statement. And
	// in one order everywhere: two transactions must not wait for each other.
	type name struct{ key, version string }
	seen := make(map[name]bool, len(checksums))
	rows := make([]AssetChecksum, 0, len(checksums))
	for _, c := range checksums {
		if n := (name{c.Object.Key, c.Object.Version}); !seen[n] && storable(c.Object) {
			seen[n] = true
			rows = append(rows, c)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	slices.SortFunc(rows, func(a, b AssetChecksum) int {
		return cmp.Or(strings.Compare(a.Object.Key, b.Object.Key), strings.Compare(a.Object.Version, b.Object.Version))
	})
	err := db.tx(ctx, func(tx *sql.Tx) error {
		save := saveChecksumsSQLite
		if db.dialect == Postgres {
			save = saveChecksumsPostgres
		}
		if err := save(ctx, tx, rows); err != nil {
			return err
		}
		// There are few cursors, whatever the number of checksums.
		_, err := tx.ExecContext(ctx, `DELETE FROM asset_cursors WHERE EXISTS (SELECT 1 FROM asset_checksums c
			WHERE c.object_key = asset_cursors.object_key AND c.version = asset_cursors.version)`)
		return err
	})
	if err != nil {
		return fault(ctx, "store checksums", err)
	}
	return nil
}

const replaceChecksum = ` ON CONFLICT (object_key, version) DO UPDATE
	SET size = excluded.size, crc32 = excluded.crc32, sha256 = excluded.sha256`

func saveChecksumsSQLite(ctx context.Context, tx *sql.Tx, rows []AssetChecksum) error {
	const atOnce = 50
	rest := len(rows) % atOnce
	if err := insertChecksums(ctx, tx, rows[:rest], rest); err != nil {
		return err
	}
	return insertChecksums(ctx, tx, rows[rest:], atOnce)
}

// insertChecksums stores some rows at once, whose number divides that of all. The
// parameters have no names: the driver looks for each name among all.
func insertChecksums(ctx context.Context, tx *sql.Tx, rows []AssetChecksum, atOnce int) error {
	if len(rows) == 0 {
		return nil
	}
	insert, err := tx.PrepareContext(ctx, `INSERT INTO asset_checksums (object_key, version, size, crc32, sha256)
		VALUES (?, ?, ?, ?, ?)`+strings.Repeat(", (?, ?, ?, ?, ?)", atOnce-1)+replaceChecksum)
	if err != nil {
		return err
	}
	defer insert.Close()
	for ; len(rows) > 0; rows = rows[atOnce:] {
		args := make([]any, 0, 5*atOnce)
		for _, c := range rows[:atOnce] {
			args = append(args, c.Object.Key, c.Object.Version, c.Object.Size, c.Checksum.CRC32, c.Checksum.SHA256)
		}
		if _, err := insert.ExecContext(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func saveChecksumsPostgres(ctx context.Context, tx *sql.Tx, rows []AssetChecksum) error {
	for chunk := range slices.Chunk(rows, checksumChunk) {
		var keys, versions []string
		var sizes, crc32s []int64
		var sha256s [][]byte
		for _, c := range chunk {
			keys, versions = append(keys, c.Object.Key), append(versions, c.Object.Version)
			sizes, crc32s = append(sizes, c.Object.Size), append(crc32s, int64(c.Checksum.CRC32))
			sha256s = append(sha256s, c.Checksum.SHA256)
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO asset_checksums (object_key, version, size, crc32, sha256)
			SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bytea[])`+replaceChecksum,
			keys, versions, sizes, crc32s, sha256s); err != nil {
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
