package client

import (
	"io/fs"
	"strings"
	"unicode"
)

// checkName refuses names that no system could take for a path within a folder.
func checkName(name string) error {
	switch {
	case !fs.ValidPath(name) || name == ".":
		return &FormatError{Name: name, Reason: "is not a path within the package"}
	case strings.Contains(name, `\`):
		return &FormatError{Name: name, Reason: "has a backslash"}
	case strings.ContainsFunc(name, unicode.IsControl):
		return &FormatError{Name: name, Reason: "has a control character"}
	}
	return nil
}

// checkFileName refuses names that could become another file than they say. What
// only Windows does not take is no reason elsewhere, but for its devices and
// what it cuts off: files travel, on shared drives for one.
func checkFileName(name string, windows bool) error {
	for element := range strings.SplitSeq(name, "/") {
		switch {
		case reservedOnWindows(element):
			return &FormatError{Name: name, Reason: "has a name that is reserved on Windows"}
		case strings.HasSuffix(element, ".") || strings.HasSuffix(element, " "):
			return &FormatError{Name: name, Reason: "has a dot or a space at the end of a name"}
		case windows && strings.ContainsAny(element, `<>:"|?*`):
			return &FormatError{Name: name, Reason: "has a character that Windows does not take"}
		}
	}
	return nil
}

// reservedOnWindows reports whether the name is that of a device, with any
// extension.
func reservedOnWindows(element string) bool {
	base, _, _ := strings.Cut(element, ".")
	base = strings.ToUpper(strings.TrimRight(base, " "))
	switch base {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$":
		return true
	}
	for _, device := range []string{"COM", "LPT"} {
		if number, ok := strings.CutPrefix(base, device); ok && len([]rune(number)) == 1 {
			return strings.ContainsAny(number, "0123456789¹²³")
		}
	}
	return false
}

// foldName returns what names have in common that a file system without case
// takes for the same.
func foldName(name string) string {
	return strings.ToLower(strings.ToUpper(name))
}
