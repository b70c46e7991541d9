package server_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/downlink-go/downlink/server"
	"github.com/downlink-go/downlink/server/internal/catalog/catalogtest"
)

// TestShutdownDelay: a server that is told to stop is not ready from then on, and
// answers calls for the delay.
func TestShutdownDelay(t *testing.T) {
	t.Parallel()
	const delay = 2 * time.Second
	d := deploy(t, func(c *server.Config) { c.ShutdownDelay = delay })
	d.Write(smallJob)
	start, stop := time.Now(), d.stop
	d.stop = nil
	stop()
	eventually(t, "it is not ready", func() bool {
		status, body := d.admin("/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "stopping")
	})
	d.ready("W1", "J1") // by a new connection
	if err := <-d.done; err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < delay {
		t.Errorf("it stopped after %s", took)
	}
}

// TestSentBytesAsTheyGo: the bytes of a download are counted while it runs, and
// each once.
func TestSentBytesAsTheyGo(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(map[string]string{"W1/J1/inputs/small": "small"})
	d.sparse("W1/J1/outputs/large", 256<<20)
	path, _ := d.ready("W1", "J1")
	sample := regexp.MustCompile(`\ndownlink_http_sent_bytes_total\{route="/packages/:token/:filename"\} (\S+)`)
	sent := func() int64 {
		_, page := d.admin("/metrics")
		m := sample.FindStringSubmatch(page)
		if m == nil {
			return 0
		}
		n, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return int64(n)
	}
	response := d.begin(path)
	defer response.Body.Close()
	if _, err := io.CopyN(io.Discard, response.Body, 64<<20); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was read is counted", func() bool { return sent() >= 60<<20 })
	if n := sent(); n >= response.ContentLength {
		t.Errorf("%d bytes are counted of a download that runs", n)
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	eventually(t, fmt.Sprintf("%d bytes are counted", response.ContentLength), func() bool { return sent() == response.ContentLength })
}

// TestReadinessHasNoSecrets: what it says of a database and a store that are gone
// has neither the password nor the key.
func TestReadinessHasNoSecrets(t *testing.T) {
	const password, key = "the-password-of-the-database", "the-secret-key-of-the-store"
	_, err := server.New(t.Context(), server.Config{
		Bucket: "file://" + filepath.ToSlash(t.TempDir()), DataDir: t.TempDir(),
		Database: "postgres://user:" + password + "@127.0.0.1:1/db",
	})
	if err == nil || strings.Contains(err.Error(), password) {
		t.Error("a database that is not there: no error, or one with the password")
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", key)
	catalogtest.Each(t, func(t *testing.T, database string) {
		front := newFront(t)
		d := deploy(t, func(c *server.Config) {
			c.Database = database
			c.Bucket = "s3://bucket?region=us-east-1&use_path_style=true&endpoint=" + front.URL
		})
		front.Close()
		status, body := d.admin("/readyz")
		if status != http.StatusServiceUnavailable || !strings.Contains(body, "bucket") || strings.Contains(body, `"bucket":"ok"`) {
			t.Errorf("status %d: %s", status, body)
		}
		for _, secret := range []string{password, key, "X-Amz-Signature", "Signature="} {
			if strings.Contains(body, secret) {
				t.Errorf("a secret in: %s", strings.ReplaceAll(body, secret, "xxxxx"))
			}
		}
		if at := strings.Index(database, "@"); at > 0 && strings.Contains(body, database[strings.LastIndex(database[:at], ":")+1:at]+"@") {
			t.Error("the password of the database")
		}
	})
}

// newFront is a store with an empty bucket.
func newFront(t *testing.T) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `<ListBucketResult><Name>bucket</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>`)
	}))
	t.Cleanup(s.Close)
	return s
}
