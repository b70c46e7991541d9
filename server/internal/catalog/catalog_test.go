package catalog_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/catalog/catalogtest"
	"github.com/downlink-go/downlink/server/internal/download"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a time that tests move.
type clock struct{ us atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.us.Store(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC).UnixMicro())
	return c
}

func (c *clock) now() time.Time          { return time.UnixMicro(c.us.Load()).UTC() }
func (c *clock) advance(d time.Duration) { c.us.Add(d.Microseconds()) }

// each runs the test over every kind of database, migrated, with its clock.
func each(t *testing.T, test func(t *testing.T, db *catalog.DB, now *clock)) {
	t.Parallel()
	catalogtest.Each(t, func(t *testing.T, database string) {
		now := newClock()
		test(t, catalogtest.Open(t, catalog.Config{Database: database, Now: now.now}), now)
	})
}

func code(err error) download.Code {
	if e, ok := errors.AsType[*download.Error](err); ok {
		return e.Code
	}
	return ""
}

func TestOrganizations(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		for _, name := range []string{"zeta", "Acme", "acme"} {
			o, err := db.CreateOrganization(ctx, name)
			if err != nil || o.Name != name || o.ID == "" || !o.Created.Equal(now.now()) {
				t.Fatalf("CreateOrganization(%q) = %+v, %v", name, o, err)
			}
		}
		if _, err := db.CreateOrganization(ctx, "acme"); !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("second acme: got %v, want ErrConflict", err)
		}
		for _, name := range []string{"", "a b", "-a", "é", strings.Repeat("a", 129), "a\x00"} {
			if _, err := db.CreateOrganization(ctx, name); code(err) != download.InvalidParameter {
				t.Errorf("organization %q: got %v, want invalid_parameter", name, err)
			}
		}
		all, err := db.Organizations(ctx)
		if err != nil || len(all) != 3 || all[0].Name != "Acme" || all[1].Name != "acme" || all[2].Name != "zeta" {
			t.Errorf("Organizations() = %+v, %v, want Acme, acme, zeta in byte order", all, err)
		}
	})
}

func TestKeys(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		if _, _, err := db.CreateKey(ctx, "acme", "", time.Time{}); !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("key of no organization: got %v, want ErrNotFound", err)
		}
		o, err := db.CreateOrganization(ctx, "acme")
		if err != nil {
			t.Fatal(err)
		}
		k, key, err := db.CreateKey(ctx, "acme", "laptop", now.now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		id, err := db.Authenticate(ctx, key)
		if want := (catalog.Identity{OrganizationID: o.ID, Organization: "acme", KeyID: k.ID}); err != nil || id != want {
			t.Errorf("Authenticate = %+v, %v, want %+v", id, err, want)
		}
		keys, err := db.Keys(ctx)
		if err != nil || len(keys) != 1 || keys[0] != k {
			t.Errorf("Keys() = %+v, %v, want %+v", keys, err, k)
		}

		raw := string(key)
		flipped := raw[:len(raw)-2] + map[bool]string{true: "ba", false: "ab"}[strings.HasSuffix(raw, "ab")]
		for name, wrong := range map[string]string{
			"empty": "", "prefix": "dl_", "other prefix": "xx" + raw[2:], "cut": raw[:len(raw)-1], "longer": raw + "a",
			"secret": flipped, "id": "dl_aaaaaaaaaaaa" + raw[15:], "upper case": strings.ToUpper(raw),
			"quote": "dl_' OR 1=1--_" + raw[16:], "nul": raw[:len(raw)-1] + "\x00", "not UTF-8": "dl_\xff\xfe\xfd345678901_" + raw[16:],
			"long": strings.Repeat("a", 8192),
		} {
			if _, err := db.Authenticate(ctx, catalog.APIKey(wrong)); !errors.Is(err, catalog.ErrUnauthenticated) {
				t.Errorf("%s: got %v, want ErrUnauthenticated", name, err)
			}
		}

		now.advance(time.Hour)
		if _, err := db.Authenticate(ctx, key); !errors.Is(err, catalog.ErrUnauthenticated) {
			t.Errorf("expired: got %v, want ErrUnauthenticated", err)
		}
	})
}

func TestRevokedKey(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		if _, err := db.CreateOrganization(ctx, "acme"); err != nil {
			t.Fatal(err)
		}
		k, key, err := db.CreateKey(ctx, "acme", "", time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Authenticate(ctx, key); err != nil {
			t.Fatal(err)
		}
		if err := db.RevokeKey(ctx, k.ID); err != nil {
			t.Fatal(err)
		}
		revoked := now.now()
		now.advance(4 * time.Second)
		if _, err := db.Authenticate(ctx, key); err != nil {
			t.Errorf("4 s after: got %v, want the remembered answer", err)
		}
		now.advance(2 * time.Second)
		if _, err := db.Authenticate(ctx, key); !errors.Is(err, catalog.ErrUnauthenticated) {
			t.Errorf("6 s after: got %v, want ErrUnauthenticated", err)
		}
		if err := db.RevokeKey(ctx, k.ID); err != nil {
			t.Errorf("revoke again: %v", err)
		}
		if keys, err := db.Keys(ctx); err != nil || !keys[0].Revoked.Equal(revoked) {
			t.Errorf("Keys() = %+v, %v, want revoked at %v", keys, err, revoked)
		}
		if err := db.RevokeKey(ctx, "nosuchkey"); !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("revoke unknown: got %v, want ErrNotFound", err)
		}
	})
}

func TestAPIKeyIsRedacted(t *testing.T) {
	t.Parallel()
	key := catalog.APIKey("dl_abc_secret")
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("m", "key", key)
	for _, s := range []string{fmt.Sprint(key), fmt.Sprintf("%+v %#v %q %s", key, key, key, key), b.String()} {
		if strings.Contains(s, "secret") {
			t.Errorf("shows the key: %s", s)
		}
	}
}

func TestGrants(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		ids := map[string]string{}
		for _, name := range []string{"acme", "globex"} {
			o, err := db.CreateOrganization(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			ids[name] = o.ID
		}
		for _, g := range [][2]string{{"acme", "W1"}, {"acme", "W1"}, {"globex", catalog.AllWorkflows}} {
			if err := db.Grant(ctx, g[0], g[1]); err != nil {
				t.Fatalf("Grant(%v): %v", g, err)
			}
		}
		check := func(org, workflow string, want bool) {
			t.Helper()
			if got, err := db.Granted(ctx, ids[org], workflow); err != nil || got != want {
				t.Errorf("Granted(%s, %s) = %v, %v, want %v", org, workflow, got, err, want)
			}
		}
		check("acme", "W1", true)
		check("acme", "w1", false)
		check("acme", "W2", false)
		check("globex", "W2", true)
		check("nobody", "W1", false)
		if all, err := db.Grants(ctx); err != nil || len(all) != 2 || all[0].WorkflowID != "W1" || all[1].Organization != "globex" {
			t.Errorf("Grants() = %+v, %v", all, err)
		}
		if err := db.RevokeGrant(ctx, "acme", "W1"); err != nil {
			t.Error(err)
		}
		now.advance(5 * time.Second)
		check("acme", "W1", false)
		if err := db.Grant(ctx, "acme", "W1"); err != nil {
			t.Error(err)
		}
		check("acme", "W1", true) // that there was no grant is not remembered
		if err := db.RevokeGrant(ctx, "acme", "W1"); err != nil {
			t.Error(err)
		}
		for _, err := range []error{db.RevokeGrant(ctx, "acme", "W1"), db.RevokeGrant(ctx, "nobody", "W1"), db.Grant(ctx, "nobody", "W1")} {
			if !errors.Is(err, catalog.ErrNotFound) {
				t.Errorf("got %v, want ErrNotFound", err)
			}
		}
		if err := db.Grant(ctx, "acme", "a/b"); code(err) != download.InvalidParameter {
			t.Errorf("got %v, want invalid_parameter", err)
		}
	})
}

func TestMigrateIsSafeAtOnce(t *testing.T) {
	t.Parallel()
	catalogtest.Each(t, func(t *testing.T, database string) {
		g, ctx := errgroup.WithContext(t.Context())
		for range 4 {
			g.Go(func() error {
				db, err := catalog.Open(ctx, catalog.Config{Database: database})
				if err != nil {
					return err
				}
				return errors.Join(db.Migrate(ctx), db.CheckMigrated(ctx), db.Close())
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestMigrationStatus(t *testing.T) {
	t.Parallel()
	catalogtest.Each(t, func(t *testing.T, database string) {
		ctx := t.Context()
		db, err := catalog.Open(ctx, catalog.Config{Database: database})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if steps, err := db.MigrationStatus(ctx); err != nil || len(steps) == 0 || steps[0].Applied {
			t.Errorf("before: %+v, %v, want a step not applied", steps, err)
		}
		if err := db.CheckMigrated(ctx); err == nil {
			t.Error("CheckMigrated accepts an empty database")
		}
		if err := db.Migrate(ctx); err != nil {
			t.Fatal(err)
		}
		if steps, err := db.MigrationStatus(ctx); err != nil || !steps[0].Applied {
			t.Errorf("after: %+v, %v, want all applied", steps, err)
		}

		if _, err := db.SQL().ExecContext(ctx, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{db.Migrate(ctx), db.CheckMigrated(ctx)} {
			if !errors.Is(err, catalog.ErrNewerSchema) {
				t.Errorf("newer schema: got %v, want ErrNewerSchema", err)
			}
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	for name, open := range map[string]func(testing.TB) string{"sqlite": catalogtest.SQLite, "postgres": catalogtest.Postgres} {
		b.Run(name, func(b *testing.B) {
			database := open(b)
			catalogtest.Open(b, catalog.Config{Database: database})
			for b.Loop() {
				db, err := catalog.Open(b.Context(), catalog.Config{Database: database})
				if err != nil {
					b.Fatal(err)
				}
				if err := errors.Join(db.Migrate(b.Context()), db.Close()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	notADatabase := filepath.Join(dir, "text")
	if err := os.WriteFile(notADatabase, []byte(strings.Repeat("not a database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	// A port that nothing listens on.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, database string
		want           download.Code
	}{
		{"empty", "", ""},
		{"no such directory", filepath.Join(dir, "no", "state.db"), ""},
		{"not a database", notADatabase, ""},
		{"nobody listens", "postgres://u:hunter2@" + addr + "/db?sslmode=disable", download.Unavailable},
		{"malformed URL", "postgres://u:hunter2%zz@[::1/db", ""},
		{"malformed option", "postgres://u:hunter2@localhost/db?sslmode=perhaps", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := catalog.Open(t.Context(), catalog.Config{Database: tt.database})
			if err == nil {
				t.Fatal("no error")
			}
			if got := code(err); got != tt.want {
				t.Errorf("code = %q, want %q: %v", got, tt.want, err)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("shows the password: %v", err)
			}
		})
	}
}

func TestSQLiteFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a b%20?c#é.db")
	db := catalogtest.Open(t, catalog.Config{Database: path})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("mode = %v, want 0600", mode)
	}
	for pragma, want := range map[string]string{"journal_mode": "wal", "foreign_keys": "1", "synchronous": "1", "busy_timeout": "10000"} {
		var got string
		if err := db.SQL().QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %s, %v, want %s", pragma, got, err, want)
		}
	}
}

// A database that is gone or cannot be used is told from a fault of ours.
func TestUnavailable(t *testing.T) {
	t.Run("busy", func(t *testing.T) {
		t.Parallel()
		path := catalogtest.SQLite(t)
		db := catalogtest.Open(t, catalog.Config{Database: path})
		if _, err := db.SQL().ExecContext(t.Context(), "PRAGMA busy_timeout = 1"); err != nil {
			t.Fatal(err)
		}
		other, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate")
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		tx, err := other.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, err := db.CreateOrganization(t.Context(), "acme"); code(err) != download.Unavailable {
			t.Errorf("got %v, want unavailable", err)
		}
	})
	t.Run("connection lost", func(t *testing.T) {
		t.Parallel()
		proxy := newProxy(t, catalogtest.Postgres(t))
		db := catalogtest.Open(t, catalog.Config{Database: proxy.url})
		proxy.cut()
		if _, err := db.Organizations(t.Context()); code(err) != download.Unavailable {
			t.Errorf("got %v, want unavailable", err)
		}
		if err := db.CheckMigrated(t.Context()); code(err) != download.Unavailable {
			t.Errorf("got %v, want unavailable", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		each(t, func(t *testing.T, db *catalog.DB, _ *clock) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := db.Organizations(ctx)
			if code(err) != "" || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context.Canceled", err)
			}
		})
	})
	t.Run("our fault", func(t *testing.T) {
		each(t, func(t *testing.T, db *catalog.DB, _ *clock) {
			if _, err := db.SQL().ExecContext(t.Context(), "DROP TABLE workflow_grants"); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Granted(t.Context(), "o", "w"); err == nil || code(err) != "" {
				t.Errorf("got %v, want an error without a code", err)
			}
		})
	})
}

// proxy stands between a test and PostgreSQL until it is cut.
type proxy struct {
	url      string
	listener net.Listener
	mu       sync.Mutex
	conns    []net.Conn
}

func newProxy(t *testing.T, database string) *proxy {
	t.Helper()
	at := strings.Index(database, "@") + 1
	end := at + strings.IndexByte(database[at:], '/')
	server := database[at:end]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{url: database[:at] + l.Addr().String() + database[end:], listener: l}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", server)
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			wg.Go(func() { copyAndClose(in, out) })
			wg.Go(func() { copyAndClose(out, in) })
		}
	})
	t.Cleanup(func() { p.cut(); wg.Wait() })
	return p
}

func copyAndClose(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			to.Close()
			from.Close()
			return
		}
	}
}

func (p *proxy) cut() {
	p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
}
