package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/test/lab"
)

// screen writes the demonstration and collects what was not as it should be.
type screen struct {
	out    io.Writer
	bold   bool
	number int
	wrong  []string
}

const ruleWidth = 110

func (s *screen) heading(title string) {
	s.number++
	title = fmt.Sprintf("%d. %s ", s.number, title)
	rule := strings.Repeat("─", max(0, ruleWidth-utf8.RuneCountInString(title)))
	fmt.Fprintf(s.out, "\n%s%s\n\n", s.strong(title), rule)
}

func (s *screen) strong(text string) string {
	if s.bold {
		return "\033[1m" + text + "\033[0m"
	}
	return text
}

func (s *screen) say(format string, args ...any) {
	setIn(s.out, "  ", fmt.Sprintf(format, args...))
}

// setIn writes text with every line that is not empty set in.
func setIn(out io.Writer, by, text string) {
	for line := range strings.Lines(text + "\n") {
		if strings.TrimSpace(line) != "" {
			line = by + line
		}
		fmt.Fprint(out, line)
	}
}

// block shows text as it is, set in.
func (s *screen) block(text string) {
	setIn(s.out, "      ", strings.TrimRight(text, "\n")+"\n")
}

// run shows a command as a person would type it, and what it says.
func (s *screen) run(cmd *lab.Cmd, where, typed string) (string, error) {
	fmt.Fprintf(s.out, "  %s\n", s.strong(where+"# "+typed))
	out, err := cmd.CombinedOutput()
	s.block(string(out))
	return string(out), err
}

// table writes rows with their columns aligned; the first row is the header.
func (s *screen) table(rows [][]string) {
	var width []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for n, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell + strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+3))
		}
		text := strings.TrimRight(line.String(), " ")
		if n == 0 {
			text = s.strong(text)
		}
		fmt.Fprintf(s.out, "  %s\n", text)
	}
}

// check notes and shows that something is not as it should be.
func (s *screen) check(ok bool, format string, args ...any) {
	if ok {
		return
	}
	problem := fmt.Sprintf(format, args...)
	s.wrong = append(s.wrong, problem)
	fmt.Fprintf(s.out, "  %s\n\n", s.strong("WRONG: "+problem))
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// indent sets every write in. Writes are whole lines.
func indent(out io.Writer) io.Writer { return indented{out} }

type indented struct{ out io.Writer }

func (i indented) Write(p []byte) (int, error) {
	if _, err := fmt.Fprintf(i.out, "  %s", p); err != nil {
		return 0, err
	}
	return len(p), nil
}
