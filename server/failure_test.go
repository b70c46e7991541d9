package server_test

import (
	"bytes"
	"context"
	"database/sql"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/downlink-go/downlink/server"
	"github.com/downlink-go/downlink/server/internal/catalog/catalogtest"
)

// TestBucketGoneAndBack: while the folder of the bucket is not there nothing is
// said about jobs and packages but that they cannot be read; when it is back,
// mounted again or another one, they can.
func TestBucketGoneAndBack(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	d.Write(map[string]string{"W1/J2/job.json": `{"status": "succeeded", "assets": [{"role": "input", "path": "a", "key": "W1/J1/inputs/a.txt"}]}`})
	path, before := d.ready("W1", "J1")
	whole := d.get(path).body
	away := d.Bucket + ".away"
	t.Cleanup(func() { _ = os.RemoveAll(away) }) // if it is still there

	gone := func() {
		t.Helper()
		for _, job := range []string{"J1", "J2", "J3"} {
			d.put("W1", job).wantRetryAfter(t, 503, "unavailable", 1, 60)
		}
	}
	if err := os.Rename(d.Bucket, away); err != nil {
		t.Fatal(err)
	}
	gone()
	if err := os.Mkdir(d.Bucket, 0o755); err != nil { // the mount point
		t.Fatal(err)
	}
	gone()
	if err := os.Remove(d.Bucket); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, d.Bucket); err != nil {
		t.Fatal(err)
	}
	if a := d.get(path); a.StatusCode != http.StatusOK || !bytes.Equal(a.body, whole) {
		t.Errorf("the folder is back: status %d", a.StatusCode)
	}
	if _, after := d.ready("W1", "J1"); after.ID != before.ID {
		t.Error("the folder is back: the package has another ID")
	}
	d.ready("W1", "J2")

	// The files are copied elsewhere and the folder is removed with all that the
	// server had open, then the copy takes its place.
	if err := os.CopyFS(away, os.DirFS(d.Bucket)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(d.Bucket); err != nil {
		t.Fatal(err)
	}
	gone()
	d.get(path).wantRetryAfter(t, 503, "unavailable", 1, 60)
	if err := os.Rename(away, d.Bucket); err != nil {
		t.Fatal(err)
	}
	d.get(path).wantError(t, 410, "package_outdated") // other files, as their times tell
	fresh, _ := d.ready("W1", "J1")
	if a := d.get(fresh); a.StatusCode != http.StatusOK || len(a.body) != len(whole) {
		t.Errorf("another folder: status %d, %d bytes", a.StatusCode, len(a.body))
	}
	d.put("W1", "J3").wantError(t, 403, "permission_denied")
}

// TestS3GoneAndBack: the same where connections to the store break.
func TestS3GoneAndBack(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(smallJob)
	d := deploy(t, on(s))
	path, _ := d.ready("W1", "J1")
	whole := d.get(path).body
	s.Fault(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
	d.put("W1", "J1").wantRetryAfter(t, 503, "unavailable", 1, 60)
	d.put("W1", "J2").wantRetryAfter(t, 503, "unavailable", 1, 60)
	d.get(path).wantRetryAfter(t, 503, "unavailable", 1, 60)
	s.Fault(nil)
	d.ready("W1", "J1")
	if a := d.get(path); a.StatusCode != http.StatusOK || !bytes.Equal(a.body, whole) {
		t.Errorf("the store is back: status %d", a.StatusCode)
	}
}

// wire is a TCP proxy that can be cut.
type wire struct {
	net.Listener
	target string
	mu     sync.Mutex
	cut    bool
	conns  map[net.Conn]bool
}

func newWire(t *testing.T, target string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Listener: l, target: target, conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { w.forward(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.Cut(true)
		wg.Wait()
	})
	return w
}

// Cut ends all connections, and as long as it is true every new one.
func (w *wire) Cut(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	for c := range w.conns {
		c.Close()
	}
}

func (w *wire) forward(in net.Conn) {
	defer in.Close()
	w.mu.Lock()
	cut := w.cut
	w.conns[in] = true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.conns, in)
	}()
	if cut {
		return
	}
	out, err := net.Dial("tcp", w.target)
	if err != nil {
		return
	}
	defer out.Close()
	go func() {
		_, _ = io.Copy(out, in) // either end may go
		out.Close()
	}()
	_, _ = io.Copy(in, out)
}

// TestDatabaseGoneAndBack: without PostgreSQL calls are 503, and URLs of packages
// that were read before go on working; when it is back so is everything.
func TestDatabaseGoneAndBack(t *testing.T) {
	t.Parallel()
	database := catalogtest.Postgres(t)
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal("the URL is none")
	}
	w := newWire(t, u.Host)
	u.Host = w.Addr().String()
	d := deploy(t, func(c *server.Config) { c.Database = u.String() })
	d.Write(smallJob)
	d.Write(map[string]string{"W1/J2/inputs/a": "x", "W1/J3/inputs/a": "y"})
	path, before := d.ready("W1", "J1")
	unread, _ := d.ready("W1", "J2")
	whole := d.get(path).body

	w.Cut(true)
	d.put("W1", "J1").wantRetryAfter(t, 503, "unavailable", 1, 60)
	d.put("W1", "J3").wantRetryAfter(t, 503, "unavailable", 1, 60)
	d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {newInvalidKey()}}).wantRetryAfter(t, 503, "unavailable", 1, 60)
	if a := d.get(path); a.StatusCode != http.StatusOK || !bytes.Equal(a.body, whole) {
		t.Errorf("a package that was read before: status %d", a.StatusCode)
	}
	d.get(unread).wantRetryAfter(t, 503, "unavailable", 1, 60)

	w.Cut(false)
	eventually(t, "calls are answered again", func() bool { return d.put("W1", "J1").StatusCode == http.StatusOK })
	if _, after := d.ready("W1", "J1"); after.ID != before.ID {
		t.Error("the package has another ID")
	}
	d.ready("W1", "J3")
	if a := d.get(unread); a.StatusCode != http.StatusOK {
		t.Errorf("the package that was not read before: status %d", a.StatusCode)
	}
}

// TestReadOnlyDatabase: one that takes no writes, as a standby of PostgreSQL,
// still gives what is there; what is new is 503 until it takes writes again.
func TestReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	database := catalogtest.Postgres(t)
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal("the URL is none")
	}
	// A user of its own, whose sessions can be made read-only.
	db, err := sql.Open("pgx", database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	schema := u.Query().Get("search_path")
	exec := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(context.Background(), statement); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE ROLE " + schema + " LOGIN PASSWORD 'x'")
	exec("GRANT ALL ON SCHEMA " + schema + " TO " + schema)
	t.Cleanup(func() {
		exec("DROP OWNED BY " + schema)
		exec("DROP ROLE " + schema)
	})
	w := newWire(t, u.Host)
	u.Host, u.User = w.Addr().String(), url.UserPassword(schema, "x")
	d := deploy(t, func(c *server.Config) { c.Database = u.String() })
	d.Write(smallJob)
	d.Write(map[string]string{"W1/J2/inputs/a": "x"})
	path, before := d.ready("W1", "J1")

	exec("ALTER ROLE " + schema + " SET default_transaction_read_only = on")
	w.Cut(true) // for new sessions
	w.Cut(false)
	var got answer
	eventually(t, "the server has a new session", func() bool {
		got = d.put("W1", "J1")
		return got.StatusCode == http.StatusOK
	})
	if got.download(t).ID != before.ID {
		t.Error("the package has another ID")
	}
	d.put("W1", "J2").wantRetryAfter(t, 503, "unavailable", 1, 60)
	if a := d.get(path); a.StatusCode != http.StatusOK {
		t.Errorf("a package that is there: status %d", a.StatusCode)
	}
	exec("ALTER ROLE " + schema + " RESET default_transaction_read_only")
	w.Cut(true)
	w.Cut(false)
	eventually(t, "what is new is made", func() bool { return d.put("W1", "J2").StatusCode == http.StatusOK })
	if strings.Contains(d.Log.String(), "panic") {
		t.Error("a panic is in the log")
	}
}
