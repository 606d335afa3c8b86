package nat

import (
	"slices"
	"strings"
)

// rule is one iptables rule as its options: "-i hop+", "! --match-set x dst",
// "-j ACCEPT". Two back ends and many versions print the same rule with its
// options in different orders, with and without the -m that loads a match, so
// rules are compared as sorted options.
type rule []string

// parseRule reads a line of iptables -S ("-A CHAIN ..."); ok is false for
// policies, chain headers and remarks.
func parseRule(line string) (r rule, ok bool) {
	words := splitWords(line)
	if len(words) < 2 || words[0] != "-A" {
		return nil, false
	}
	return newRule(words[2:]), true
}

func newRule(words []string) rule {
	var r rule
	negated := false
	for _, w := range words {
		switch {
		case w == "!":
			negated = true
			continue
		case strings.HasPrefix(w, "-") && negated:
			r = append(r, "! "+w)
		case strings.HasPrefix(w, "-"):
			r = append(r, w)
		case len(r) > 0:
			r[len(r)-1] += " " + w
		}
		negated = false
	}
	r = slices.DeleteFunc(r, func(o string) bool { return strings.HasPrefix(o, "-m ") })
	for i, o := range r {
		if o == "-p ipencap" || o == "-p ipv4" {
			r[i] = "-p " + ipipProtocol // as /etc/protocols has it, if there is one
		}
	}
	slices.Sort(r)
	return r
}

func (r rule) equal(other rule) bool { return slices.Equal(r, other) }

// target is the chain or verdict jumped to, "" without one.
func (r rule) target() string {
	for _, o := range r {
		if t, ok := strings.CutPrefix(o, "-j "); ok {
			return t
		}
	}
	return ""
}

// endsChain reports whether no packet gets past r: a verdict without a match.
func (r rule) endsChain() bool {
	for _, o := range r {
		name, _, _ := strings.Cut(o, " ")
		switch name {
		case "-j", "--comment", "--reject-with":
		default:
			return false
		}
	}
	switch r.target() {
	case "ACCEPT", "DROP", "REJECT", "RETURN":
		return true
	}
	return false
}

// splitWords splits as iptables quotes: words with spaces in double quotes,
// with a backslash before quotes and backslashes.
func splitWords(line string) []string {
	var words []string
	var b strings.Builder
	inWord, quoted := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && i+1 < len(line):
			i++
			b.WriteByte(line[i])
			inWord = true
		case c == '"':
			quoted, inWord = !quoted, true
		case c == ' ' && !quoted:
			if inWord {
				words = append(words, b.String())
				b.Reset()
				inWord = false
			}
		default:
			b.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		words = append(words, b.String())
	}
	return words
}

// words are arguments for iptables that mean r. Options of a match need its -m
// before them; those that can stand in a jump to our chains are known.
func (r rule) words() []string {
	var words []string
	for _, o := range r {
		if c, ok := strings.CutPrefix(o, "--comment "); ok {
			words = append(words, "-m", "comment", "--comment", c)
			continue
		}
		words = append(words, strings.Fields(o)...)
	}
	return words
}
