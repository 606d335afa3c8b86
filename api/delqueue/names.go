package delqueue

import (
	"errors"
	"fmt"
	"unicode"
	"unicode/utf8"
)

const (
	// maxContainerID leaves room for "@" and an interface name in a file name (255 bytes).
	maxContainerID = 200
	// maxIfname is the kernel's IFNAMSIZ without the final zero byte.
	maxIfname = 15
)

// ValidateContainerID checks a container ID by the CNI specification ("must
// start with an alphanumeric character, optionally followed by any combination
// of alphanumeric characters, underscore, dot or hyphen") and its length.
func ValidateContainerID(id string) error {
	if id == "" {
		return errors.New("container ID is empty")
	}
	if len(id) > maxContainerID {
		return fmt.Errorf("container ID has %d characters: at most %d are allowed", len(id), maxContainerID)
	}
	for i := range len(id) {
		c := id[i]
		alnum := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return fmt.Errorf("container ID %q: write letters, digits, '_', '.' and '-' only, beginning with a letter or digit", id)
		}
	}
	return nil
}

// ValidateIfname checks an interface name as the kernel does (dev_valid_name in
// net/core/dev.c), and beyond it: '%' would be taken as a pattern, and control
// characters and broken UTF-8 cannot be shown or sent.
func ValidateIfname(name string) error {
	if name == "" {
		return errors.New("interface name is empty")
	}
	if len(name) > maxIfname {
		return fmt.Errorf("interface name %q has %d bytes: at most %d are allowed", name, len(name), maxIfname)
	}
	if name == "." || name == ".." {
		return fmt.Errorf("interface name %q is not allowed", name)
	}
	if !utf8.ValidString(name) {
		return fmt.Errorf("interface name %q is not UTF-8", name)
	}
	for _, r := range name {
		if r == '/' || r == ':' || r == '%' || unicode.IsSpace(r) || unicode.IsControl(r) {
			return fmt.Errorf("interface name %q: '/', ':', '%%', white space and control characters are not allowed", name)
		}
	}
	return nil
}
