package catalog

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/downlink-go/downlink/server/internal/download"
)

// APIKey is the secret that a client presents, "dl_<id>_<secret>". It never
// shows itself when it is printed or logged; string(key) is the key.
type APIKey string

// String returns a placeholder.
func (APIKey) String() string { return "[api key]" }

// GoString returns a placeholder.
func (k APIKey) GoString() string { return k.String() }

// LogValue returns a placeholder.
func (k APIKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

const (
	keyIDLength     = 12 // base32 characters, 60 bits
	keySecretLength = 52 // base32 characters, 256 bits
)

const keyAlphabet = "abcdefghijklmnopqrstuvwxyz234567"

var keyEncoding = base32.NewEncoding(keyAlphabet).WithPadding(base32.NoPadding)

func newAPIKey() (id string, key APIKey) {
	b := make([]byte, 40)
	rand.Read(b) // never fails
	id = keyEncoding.EncodeToString(b[:8])[:keyIDLength]
	return id, APIKey("dl_" + id + "_" + keyEncoding.EncodeToString(b[8:]))
}

// parse splits the key, if it has the form of one.
func (k APIKey) parse() (id, secret string, ok bool) {
	rest, ok := strings.CutPrefix(string(k), "dl_")
	if !ok {
		return "", "", false
	}
	id, secret, ok = strings.Cut(rest, "_")
	return id, secret, ok && len(id) == keyIDLength && len(secret) == keySecretLength &&
		strings.Trim(id+secret, keyAlphabet) == ""
}

// Key is what is known of an API key, without its secret.
type Key struct {
	ID           string
	Organization string // its name
	Label        string
	Created      time.Time
	Expires      time.Time // zero if it does not
	Revoked      time.Time // zero if it is not
}

// CreateKey adds a key for the organization, with a label for people and a time
// at which it expires, either of which may be left out. The secret is returned
// this once and not stored. It fails with ErrNotFound if there is no such
// organization, and with a [download.Error] of InvalidParameter if the label is
// not text.
func (db *DB) CreateKey(ctx context.Context, organization, label string, expires time.Time) (Key, APIKey, error) {
	if !storableText(label) {
		return Key{}, "", &download.Error{Code: download.InvalidParameter, Message: "the label is not UTF-8 text"}
	}
	organizationID, err := db.organizationID(ctx, organization)
	if err != nil {
		return Key{}, "", err
	}
	id, key := newAPIKey()
	_, secret, _ := key.parse()
	hash := sha256.Sum256([]byte(secret))
	now, until := micros(db.now()), micros(expires)
	if _, err := db.exec(ctx, "create key",
		`INSERT INTO api_keys (id, organization_id, label, secret_hash, created_at, expires_at, revoked_at)
		VALUES ($1, $2, $3, $4, $5, $6, 0)`,
		id, organizationID, label, hash[:], now, until); err != nil {
		return Key{}, "", err
	}
	return Key{ID: id, Organization: organization, Label: label, Created: fromMicros(now), Expires: fromMicros(until)}, key, nil
}

// Keys lists all keys by organization and time of creation.
func (db *DB) Keys(ctx context.Context) ([]Key, error) {
	return query(ctx, db, "list keys", func(rows *sql.Rows) (k Key, err error) {
		var created, expires, revoked int64
		err = rows.Scan(&k.ID, &k.Organization, &k.Label, &created, &expires, &revoked)
		k.Created, k.Expires, k.Revoked = fromMicros(created), fromMicros(expires), fromMicros(revoked)
		return k, err
	}, `SELECT k.id, o.name, k.label, k.created_at, k.expires_at, k.revoked_at FROM api_keys k
		JOIN organizations o ON o.id = k.organization_id ORDER BY o.name, k.created_at, k.id`)
}

// RevokeKey ends the life of a key. Servers go on accepting it for up to 5
// seconds. Doing so twice is fine. It fails with ErrNotFound if there is no such
// key.
func (db *DB) RevokeKey(ctx context.Context, id string) error {
	n, err := db.exec(ctx, "revoke key",
		`UPDATE api_keys SET revoked_at = CASE WHEN revoked_at = 0 THEN $2 ELSE revoked_at END WHERE id = $1`,
		id, micros(db.now()))
	if err == nil && n == 0 {
		err = fmt.Errorf("key %q: %w", id, ErrNotFound)
	}
	return err
}

// Identity is whom a key stands for.
type Identity struct {
	OrganizationID string
	Organization   string // its name
	KeyID          string
}

// Authenticate returns whom the key stands for, or ErrUnauthenticated whatever
// is wrong with it. A valid key is remembered for 5 seconds.
func (db *DB) Authenticate(ctx context.Context, key APIKey) (Identity, error) {
	return db.keys.get(ctx, key)
}

// lookUp reads the key from the database. The work is the same whether or not
// there is a key of that id.
func (db *DB) lookUp(ctx context.Context, key APIKey) (validKey, error) {
	id, secret, ok := key.parse()
	if !ok {
		return validKey{}, ErrUnauthenticated
	}
	v := validKey{Identity: Identity{KeyID: id}}
	var stored []byte
	var expires, revoked int64
	err := db.read.QueryRowContext(ctx,
		`SELECT k.secret_hash, k.expires_at, k.revoked_at, o.id, o.name FROM api_keys k
		JOIN organizations o ON o.id = k.organization_id WHERE k.id = $1`, id).
		Scan(&stored, &expires, &revoked, &v.OrganizationID, &v.Organization)
	if errors.Is(err, sql.ErrNoRows) {
		stored, err = make([]byte, sha256.Size), nil // which nothing hashes to
	}
	if err != nil {
		return validKey{}, fault(ctx, "look up key", err)
	}
	hash := sha256.Sum256([]byte(secret))
	v.expires = fromMicros(expires)
	if subtle.ConstantTimeCompare(hash[:], stored) != 1 || revoked != 0 || v.expired(db.now()) {
		return validKey{}, ErrUnauthenticated
	}
	return v, nil
}

// validKey is a key that was found to be valid.
type validKey struct {
	Identity
	expires time.Time
}

func (v validKey) expired(now time.Time) bool { return !v.expires.IsZero() && !now.Before(v.expires) }

// keyCache remembers valid keys by their hash, so that a busy client costs no
// read a call. It holds none that are not valid: a new key works at once, and a
// stranger cannot fill it.
type keyCache struct {
	db    *DB
	cache *otter.Cache[[sha256.Size]byte, validKey]
}

func newKeyCache(db *DB) *keyCache {
	return &keyCache{db: db, cache: newMemory[[sha256.Size]byte, validKey](db)}
}

// newMemory returns a cache for what every call asks the database, for as long as
// a revocation may take to work.
func newMemory[K comparable, V any](db *DB) *otter.Cache[K, V] {
	return otter.Must(&otter.Options[K, V]{
		MaximumSize:      10_000,
		ExpiryCalculator: otter.ExpiryWriting[K, V](5 * time.Second),
		Clock:            monotonic{now: db.now, start: db.now()},
	})
}

func (c *keyCache) get(ctx context.Context, key APIKey) (Identity, error) {
	load := func(ctx context.Context, _ [sha256.Size]byte) (validKey, error) {
		// Others wait for it too, whatever becomes of this call.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return c.db.lookUp(ctx, key)
	}
	v, err := c.cache.Get(ctx, sha256.Sum256([]byte(key)), otter.LoaderFunc[[sha256.Size]byte, validKey](load))
	if err != nil {
		return Identity{}, err
	}
	if v.expired(c.db.now()) {
		return Identity{}, ErrUnauthenticated
	}
	return v.Identity, nil
}

// monotonic is a clock for otter that survives changes of the wall clock. It has
// no ticks: the bound on the size is enough, and no goroutine outlives a use.
type monotonic struct {
	now   func() time.Time
	start time.Time
}

func (m monotonic) NowNano() int64 { return int64(m.now().Sub(m.start)) }

func (monotonic) Tick(time.Duration) <-chan time.Time { return nil }
