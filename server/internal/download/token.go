package download

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// SigningKey is the secret that signs links, at least 32 bytes of randomness.
// It never shows itself when it is printed or logged.
type SigningKey []byte

// String returns a placeholder.
func (SigningKey) String() string { return "[signing key]" }

// GoString returns a placeholder.
func (k SigningKey) GoString() string { return k.String() }

// LogValue returns a placeholder.
func (k SigningKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Keyring signs and verifies the tokens of signed links. The first key signs,
// all of them verify. It is safe for concurrent use.
type Keyring struct {
	signers atomic.Pointer[[]*signer]
}

// signer is a key that is ready to sign.
type signer struct {
	id   [4]byte   // names the key without telling anything about it
	macs sync.Pool // of hash.Hash, keyed
}

func newSigner(key SigningKey) *signer {
	sum := sha256.Sum256(append([]byte("downlink signing key id\x00"), key...))
	key = slices.Clone(key)
	return &signer{id: [4]byte(sum[:]), macs: sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}}
}

// appendMAC appends the HMAC of what is in b and the filename.
func (s *signer) appendMAC(b []byte, filename string) []byte {
	m := s.macs.Get().(hash.Hash)
	defer s.macs.Put(m)
	m.Reset()
	m.Write(b)
	_, _ = io.WriteString(m, filename) // a hash never fails
	return m.Sum(b)
}

// NewKeyring returns a keyring with these keys. It fails as [Keyring.Set] does.
func NewKeyring(keys ...SigningKey) (*Keyring, error) {
	k := &Keyring{}
	return k, k.Set(keys)
}

// Set replaces all keys, for links from now on. It fails, and changes nothing,
// if there is none or one is shorter than 32 bytes.
func (k *Keyring) Set(keys []SigningKey) error {
	if len(keys) == 0 {
		return errors.New("no signing key")
	}
	for i, key := range keys {
		if len(key) < 32 {
			return fmt.Errorf("signing key %d has %d bytes, want 32 or more", i+1, len(key))
		}
	}
	signers := make([]*signer, len(keys))
	for i, key := range keys {
		signers[i] = newSigner(key)
	}
	k.signers.Store(&signers)
	return nil
}

// Link is what a token says: one version of one package may be read until it
// expires.
type Link struct {
	Package uuid.UUID
	// Digest is the start of the package's digest, so that a link can never
	// give other bytes than it was signed for.
	Digest [8]byte
	// Expires is to the second.
	Expires time.Time
	// KeyID is the ID of the API key that the link was made for, so that its
	// use can be counted. Up to 12 bytes, none of them zero.
	KeyID string
}

// A token is the base64url form of
//
//	version (1) | key id (4) | package (16) | digest (8) | expiry, Unix seconds (8) |
//	API key id (12) | HMAC-SHA256 (32)
//
// big endian, the API key's id filled up with zeros. The HMAC covers everything before it and the file name that the
// link ends in.
const (
	tokenVersion = 2
	tokenKeyID   = 12
	tokenBody    = 1 + 4 + 16 + 8 + 8 + tokenKeyID
	tokenLength  = tokenBody + sha256.Size
)

var tokenEncoding = base64.RawURLEncoding.Strict()

// Sign returns the token for a link to the file of this name.
func (k *Keyring) Sign(l Link, filename string) string {
	signer := (*k.signers.Load())[0]
	b := make([]byte, 0, tokenLength)
	b = append(b, tokenVersion)
	b = append(b, signer.id[:]...)
	b = append(b, l.Package[:]...)
	b = append(b, l.Digest[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Expires.Unix()))
	var keyID [tokenKeyID]byte
	copy(keyID[:], l.KeyID)
	b = append(b, keyID[:]...)
	return tokenEncoding.EncodeToString(signer.appendMAC(b, filename))
}

// Verify returns what the token says. It needs no database and compares in
// constant time. A token that this keyring did not sign for this file name gives
// an [Error] with LinkInvalid, one whose time is over LinkExpired.
func (k *Keyring) Verify(token, filename string, now time.Time) (Link, error) {
	if len(token) != tokenEncoding.EncodedLen(tokenLength) {
		return Link{}, errLinkInvalid
	}
	b, err := tokenEncoding.DecodeString(token)
	if err != nil || b[0] != tokenVersion {
		return Link{}, errLinkInvalid
	}
	body := b[:tokenBody:tokenBody] // so that appending leaves b alone
	valid := false
	for _, signer := range *k.signers.Load() {
		if [4]byte(body[1:5]) == signer.id && hmac.Equal(b, signer.appendMAC(body, filename)) {
			valid = true
		}
	}
	if !valid {
		return Link{}, errLinkInvalid
	}
	l := Link{
		Package: uuid.UUID(body[5:21]),
		Digest:  [8]byte(body[21:29]),
		Expires: time.Unix(int64(binary.BigEndian.Uint64(body[29:37])), 0),
		KeyID:   strings.TrimRight(string(body[37:]), "\x00"),
	}
	if !now.Before(l.Expires) {
		return Link{}, errLinkExpired
	}
	return l, nil
}

var (
	errLinkInvalid = &Error{Code: LinkInvalid, Message: "the signed URL is not valid; ask for a new one"}
	errLinkExpired = &Error{Code: LinkExpired, Message: "the signed URL has expired; ask for a new one"}
	errOutdated    = &Error{Code: PackageOutdated, Message: "the package behind this signed URL has changed; ask for a new one"}
)
