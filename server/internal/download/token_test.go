package download

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

var signedAt = time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)

func testKey(b byte) SigningKey { return bytes.Repeat([]byte{b}, 32) }

func newTestKeyring(t testing.TB, keys ...SigningKey) *Keyring {
	t.Helper()
	k, err := NewKeyring(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testLink() Link {
	return Link{Package: uuid.MustParse("1b4e28ba-2fa1-51d2-883f-0016d3cca427"), Digest: [8]byte{1, 2, 3}, Expires: signedAt.Add(time.Hour), KeyID: "abcdefghij23"}
}

func code(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

func TestTokenSaysWhatWasSigned(t *testing.T) {
	t.Parallel()
	k := newTestKeyring(t, testKey(1))
	token := k.Sign(testLink(), "W1_J1.zip")
	if strings.Trim(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		t.Errorf("%q does not fit into a path as it is", token)
	}
	got, err := k.Verify(token, "W1_J1.zip", signedAt)
	if err != nil {
		t.Fatal(err)
	}
	if want := testLink(); got.Package != want.Package || got.Digest != want.Digest || !got.Expires.Equal(want.Expires) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTokenExpires(t *testing.T) {
	t.Parallel()
	k := newTestKeyring(t, testKey(1))
	token := k.Sign(testLink(), "W1_J1.zip")
	if _, err := k.Verify(token, "W1_J1.zip", testLink().Expires.Add(-time.Nanosecond)); err != nil {
		t.Errorf("just before: %v", err)
	}
	if _, err := k.Verify(token, "W1_J1.zip", testLink().Expires); code(err) != LinkExpired {
		t.Errorf("at its end: %v, want %s", err, LinkExpired)
	}
}

// TestTokenTampered flips every bit of a token, and cuts it at every length.
func TestTokenTampered(t *testing.T) {
	t.Parallel()
	k := newTestKeyring(t, testKey(1))
	token := k.Sign(testLink(), "W1_J1.zip")
	verify := func(token, filename string) {
		t.Helper()
		if _, err := k.Verify(token, filename, signedAt); code(err) != LinkInvalid {
			t.Errorf("Verify(%q, %q) = %v, want %s", token, filename, err, LinkInvalid)
		}
	}
	raw, err := tokenEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(raw) {
		changed := bytes.Clone(raw)
		changed[bit/8] ^= 1 << (bit % 8)
		verify(tokenEncoding.EncodeToString(changed), "W1_J1.zip")
	}
	for n := range token {
		verify(token[:n], "W1_J1.zip")
	}
	verify(token+"A", "W1_J1.zip")
	verify(token, "W1_J2.zip")
	verify(token, "")
	verify(newTestKeyring(t, testKey(2)).Sign(testLink(), "W1_J1.zip"), "W1_J1.zip")
}

func TestKeyRotation(t *testing.T) {
	t.Parallel()
	k := newTestKeyring(t, testKey(1))
	old := k.Sign(testLink(), "f")
	if err := k.Set([]SigningKey{testKey(2), testKey(1)}); err != nil {
		t.Fatal(err)
	}
	fresh := k.Sign(testLink(), "f")
	for name, token := range map[string]string{"old": old, "new": fresh} {
		if _, err := k.Verify(token, "f", signedAt); err != nil {
			t.Errorf("token of the %s key: %v", name, err)
		}
	}
	if err := k.Set([]SigningKey{testKey(2)}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Verify(old, "f", signedAt); code(err) != LinkInvalid {
		t.Errorf("token of a dropped key: %v, want %s", err, LinkInvalid)
	}
	if _, err := k.Verify(fresh, "f", signedAt); err != nil {
		t.Errorf("token of the key that stayed: %v", err)
	}
}

func TestKeyringRefusesWeakKeys(t *testing.T) {
	t.Parallel()
	if _, err := NewKeyring(); err == nil {
		t.Error("a keyring without a key")
	}
	k := newTestKeyring(t, testKey(1))
	if err := k.Set([]SigningKey{testKey(2), testKey(3)[:31]}); err == nil {
		t.Error("a key of 31 bytes")
	}
	if _, err := k.Verify(newTestKeyring(t, testKey(1)).Sign(testLink(), "f"), "f", signedAt); err != nil {
		t.Errorf("after a Set that failed: %v", err)
	}
}

func TestSigningKeyIsNotPrinted(t *testing.T) {
	t.Parallel()
	key := SigningKey(bytes.Repeat([]byte("secret!!"), 4))
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(format, key); strings.Contains(got, "secret") || strings.Contains(got, "115") {
			t.Errorf("%s prints %s", format, got)
		}
	}
}

func FuzzVerify(f *testing.F) {
	k := newTestKeyring(f, testKey(1))
	f.Add(k.Sign(testLink(), "W1_J1.zip"), "W1_J1.zip")
	f.Add("", "")
	f.Add(strings.Repeat("A", 92), "x.zip")
	f.Fuzz(func(t *testing.T, token, filename string) {
		l, err := k.Verify(token, filename, signedAt)
		if err == nil && k.Sign(l, filename) != token {
			t.Errorf("%q verifies and is not what would be signed", token)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	k := newTestKeyring(b, testKey(1))
	for b.Loop() {
		k.Sign(testLink(), "W1_J1.zip")
	}
}

func BenchmarkVerify(b *testing.B) {
	k := newTestKeyring(b, testKey(1))
	token := k.Sign(testLink(), "W1_J1.zip")
	for b.Loop() {
		if _, err := k.Verify(token, "W1_J1.zip", signedAt); err != nil {
			b.Fatal(err)
		}
	}
}
