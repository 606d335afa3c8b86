package uml

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// lines are the kernel's serial lines as pipes, in the order of inside.Stdout,
// inside.Stderr and inside.Status. The kernel waits for whoever reads them.
type lines struct {
	ours    []*os.File // the kernel's ends
	readers []*os.File
	copies  sync.WaitGroup
}

// openLines makes a line for each writer, which gets what is written on it.
func openLines(to ...io.Writer) (*lines, error) {
	l := &lines{}
	for _, w := range to {
		r, ours, err := os.Pipe()
		if err != nil {
			l.started()
			l.finish()
			return nil, err
		}
		l.readers, l.ours = append(l.readers, r), append(l.ours, ours)
		l.copies.Go(func() {
			if _, err := io.Copy(w, r); err != nil {
				_, _ = io.Copy(io.Discard, r) // or a writer that fails would hold the kernel up
			}
		})
	}
	return l, nil
}

// parameters tell the kernel which descriptors its lines are: exec.Cmd.ExtraFiles begin at 3.
func (l *lines) parameters() []string {
	var all []string
	for i := range l.ours {
		all = append(all, fmt.Sprintf("ssl%d=null,fd:%d", i, 3+i))
	}
	return all
}

// started closes the kernel's ends here, so that the lines end with the kernel.
func (l *lines) started() {
	for _, f := range l.ours {
		f.Close()
	}
}

// finish waits until all that a kernel that has ended wrote is with the writers.
func (l *lines) finish() {
	for _, r := range l.readers {
		_ = r.SetReadDeadline(time.Now().Add(5 * time.Second)) // should any process of it still be dying
	}
	l.copies.Wait()
	for _, r := range l.readers {
		r.Close()
	}
}

// tail keeps the last bytes written to it.
type tail struct {
	content []byte
	limit   int
}

func (t *tail) Write(p []byte) (int, error) {
	t.content = append(t.content, p...)
	if extra := len(t.content) - t.limit; extra > 0 {
		t.content = append([]byte{}, t.content[extra:]...)
	}
	return len(p), nil
}
