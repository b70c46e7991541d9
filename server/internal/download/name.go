package download

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// natural is the name that an asset would have if every path were safe.
func (a *Asset) natural() string { return a.Role.Dir() + "/" + a.Path }

// kept reports whether the entry's name is the natural one.
func (e *Entry) kept() bool {
	dir := e.Role.Dir()
	return len(e.Name) == len(dir)+1+len(e.Path) && e.Name[:len(dir)] == dir && e.Name[len(dir)] == '/' && e.Name[len(dir)+1:] == e.Path
}

// name gives every entry a name that is safe to extract on any system and
// unique there, also where case does not count. It depends on the set of paths
// alone. The entries are sorted by role and path.
func (p *Plan) name() {
	n := namer{taken: make(map[string]bool, len(p.Entries)), folders: make(map[string]bool)}
	changed := make([]bool, len(p.Entries))
	for i := range p.Entries {
		e := &p.Entries[i]
		natural := e.natural()
		e.Name = safeName(natural)
		changed[i] = e.Name != natural
		n.addFolders(e.Name)
	}
	// Names that can stay as they are go first, so that only those that must
	// change make way for others.
	var others []*Entry
	for i := range p.Entries {
		if e := &p.Entries[i]; changed[i] || !n.claim(e.Name) {
			others = append(others, e)
		}
	}
	for _, e := range others {
		e.Name = n.claimSimilar(e.Name)
	}
}

// namer keeps the names of one package apart. Its keys are folded.
type namer struct {
	taken   map[string]bool
	folders map[string]bool
	last    string // the folder added last; most names share it
}

func (n *namer) addFolders(name string) {
	dir := name[:strings.LastIndexByte(name, '/')]
	if dir == n.last {
		return
	}
	n.last = dir
	for {
		folded := fold(dir)
		if n.folders[folded] {
			return
		}
		n.folders[folded] = true
		i := strings.LastIndexByte(dir, '/')
		if i < 0 {
			return
		}
		dir = dir[:i]
	}
}

// claim takes the name, unless another file or a folder has it.
func (n *namer) claim(name string) bool {
	folded := fold(name)
	if n.taken[folded] || n.folders[folded] {
		return false
	}
	n.taken[folded] = true
	return true
}

// claimSimilar takes the name or the first of name~2.ext, name~3.ext and so on
// that is free, and returns it.
func (n *namer) claimSimilar(name string) string {
	stem, ext := name, ""
	if dot := strings.LastIndexByte(name, '.'); dot > strings.LastIndexByte(name, '/')+1 {
		stem, ext = name[:dot], name[dot:]
	}
	for i := 2; !n.claim(name); i++ {
		name = stem + "~" + strconv.Itoa(i) + ext
	}
	return name
}

// fold maps names that a case-insensitive file system takes for one to one key.
func fold(name string) string {
	for i := range len(name) {
		if name[i] >= utf8.RuneSelf {
			return norm.NFC.String(cases.Fold().String(name))
		}
	}
	return strings.ToLower(name)
}

// safeName makes a path safe to extract: relative, in Unicode normal form C,
// without empty, "." or ".." segments, backslashes, control characters, or
// anything that Windows reserves or drops. A path that is safe is returned
// unchanged.
func safeName(name string) string {
	if plain(name) {
		return name
	}
	if !utf8.ValidString(name) {
		name = strings.ToValidUTF8(name, "_")
	}
	name = norm.NFC.String(name)
	var b strings.Builder
	for i, segment := range strings.Split(name, "/") {
		if i > 0 {
			b.WriteByte('/')
		}
		b.WriteString(safeSegment(segment))
	}
	return b.String()
}

// plain reports whether a path is made of the characters that nearly all are,
// and safe. It saves the many the work that the few need.
func plain(name string) bool {
	start := 0 // of the segment
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			c := name[i]
			if c < 0x20 || c >= 0x7f || strings.IndexByte(forbidden, c) >= 0 {
				return false
			}
			continue
		}
		if i == start || name[i-1] == '.' || name[i-1] == ' ' || reserved(name[start:i]) {
			return false
		}
		start = i + 1
	}
	return true
}

// forbidden are the printable characters that Windows has no file names with.
const forbidden = `\<>:"|?*`

func safeSegment(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || strings.ContainsRune(forbidden, r) {
			return '_'
		}
		return r
	}, s)
	if trimmed := strings.TrimRight(s, ". "); len(trimmed) < len(s) {
		// Windows drops trailing dots and spaces; this also ends "." and "..".
		s = trimmed + strings.Repeat("_", len(s)-len(trimmed))
	}
	if s == "" {
		return "_"
	}
	if reserved(s) {
		return "_" + s
	}
	return s
}

// reserved reports whether Windows takes the segment for a device, with any
// extension.
func reserved(s string) bool {
	if len(s) < 3 || strings.IndexByte("acnplACNPL", s[0]) < 0 {
		return false
	}
	stem, _, _ := strings.Cut(s, ".")
	switch stem = strings.ToUpper(strings.TrimRight(stem, " ")); stem {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$":
		return true
	}
	digit, ok := strings.CutPrefix(stem, "COM")
	if !ok {
		digit, ok = strings.CutPrefix(stem, "LPT")
	}
	r, size := utf8.DecodeRuneInString(digit)
	return ok && size == len(digit) && size > 0 && strings.ContainsRune("123456789¹²³", r)
}
