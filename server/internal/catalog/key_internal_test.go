package catalog

import (
	"strings"
	"testing"
)

// FuzzParseKey: what is taken for a key is one as they are made, and none other
// reaches the database.
func FuzzParseKey(f *testing.F) {
	id, key := newAPIKey()
	f.Add(string(key))
	f.Add("dl_" + id + "_")
	f.Add("dl__" + string(key)[len(key)-keySecretLength:])
	f.Add(strings.ToUpper(string(key)))
	f.Add(string(key) + "\x00")
	f.Fuzz(func(t *testing.T, s string) {
		id, secret, ok := APIKey(s).parse()
		if !ok {
			return
		}
		if s != "dl_"+id+"_"+secret || len(s) != len(key) {
			t.Error("a key is not its parts")
		}
		for _, c := range id + secret {
			if !strings.ContainsRune(keyAlphabet, c) {
				t.Errorf("%q is in a key", c)
			}
		}
	})
}
