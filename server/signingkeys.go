package server

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/downlink-go/downlink/server/internal/download"
)

// SigningKey is the secret that signs links, at least 32 bytes of randomness.
type SigningKey = download.SigningKey

// keyFile is the name of the signing keys' file in the data directory. It has a
// key a line, in base64 with the time it was made, the newest first. The first
// key signs, all of them verify.
const keyFile = "signing-keys"

// longestLink is how long a replaced key may still be needed.
const longestLink = 7 * 24 * time.Hour

// storedKey is a line of the file.
type storedKey struct {
	key  SigningKey
	made time.Time
}

// signingKeyFile is the path of the signing keys of a data directory.
func signingKeyFile(dataDir string) string { return filepath.Join(dataDir, keyFile) }

// ParseSigningKeys reads keys in base64, separated by commas or white space.
func ParseSigningKeys(s string) ([]SigningKey, error) {
	var keys []SigningKey
	for i, field := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }) {
		key, err := base64.StdEncoding.DecodeString(field)
		if err != nil || len(key) < 32 {
			return nil, fmt.Errorf("key %d is not 32 or more bytes in base64", i+1)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// loadSigningKeys returns the keys in the file.
func loadSigningKeys(path string) ([]SigningKey, error) {
	stored, err := readSigningKeys(path)
	if err != nil {
		return nil, err
	}
	keys := make([]SigningKey, len(stored))
	for i, s := range stored {
		keys[i] = s.key
	}
	return keys, nil
}

// makeSigningKeys makes the first key if there is no file.
func makeSigningKeys(path string, now time.Time) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeSigningKeys(path, []storedKey{newSigningKey(now)})
}

// RotateSigningKey puts a new key first in the data directory's file, and drops
// those that no link can need any more. Links that are out keep working. A
// running server takes the new key within seconds. It returns the number of keys
// that verify from now on.
func RotateSigningKey(dataDir string) (int, error) {
	path, now := signingKeyFile(dataDir), time.Now()
	stored, err := readSigningKeys(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	stored = slices.Insert(stored, 0, newSigningKey(now))
	// A key stopped signing when the one before it was made.
	for i := 1; i < len(stored); i++ {
		if now.Sub(stored[i-1].made) > longestLink {
			stored = stored[:i]
		}
	}
	return len(stored), writeSigningKeys(path, stored)
}

func newSigningKey(now time.Time) storedKey {
	key := make(SigningKey, 32)
	_, _ = rand.Read(key) // never fails
	return storedKey{key: key, made: now.UTC()}
}

func readSigningKeys(path string) ([]storedKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %v): run chmod 600 on it", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var stored []storedKey
	number := 0
	for line := range bytes.Lines(data) {
		number++
		fields := strings.Fields(string(line))
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("%s: line %d: want a key and a time", path, number)
		}
		key, err := base64.StdEncoding.DecodeString(fields[0])
		if err != nil || len(key) < 32 {
			return nil, fmt.Errorf("%s: line %d: the key is not 32 or more bytes in base64", path, number)
		}
		made, err := time.Parse(time.RFC3339, fields[1])
		if err != nil {
			return nil, fmt.Errorf("%s: line %d: the time is not of the form 2006-01-02T15:04:05Z", path, number)
		}
		stored = append(stored, storedKey{key: key, made: made})
	}
	if len(stored) == 0 {
		return nil, fmt.Errorf("%s has no key: remove it to have one made", path)
	}
	return stored, nil
}

// writeSigningKeys replaces the file as a whole.
func writeSigningKeys(path string, stored []storedKey) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), keyFile+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	for _, s := range stored {
		line := base64.StdEncoding.EncodeToString(s.key) + " " + s.made.Format(time.RFC3339) + "\n"
		if _, err := f.WriteString(line); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
