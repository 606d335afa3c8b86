package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// Request is one request to the API server, as its audit log has it.
type Request struct {
	// User is AgentUser(node) for an agent.
	User string
	Verb string
	// URI is path and query.
	URI       string
	UserAgent string
	// Received is when the API server got it.
	Received time.Time
}

// Requests returns every request that the API server has answered since the
// lab's start, in the order of the answers. A watch counts once, when it begins. The
// log is written before a client gets its answer, so that nothing is missing.
func (l *Lab) Requests() ([]Request, error) {
	file, err := os.Open(l.control.Path(auditLog))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var all []Request
	seen := map[string]bool{}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event auditEvent
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		// A watch has two events: response started, response complete.
		if seen[event.AuditID] {
			continue
		}
		seen[event.AuditID] = true
		all = append(all, Request{event.User.Username, event.Verb, event.RequestURI, event.UserAgent, event.RequestReceivedTimestamp})
	}
	return all, lines.Err()
}

// RequestsBy counts a user's requests since the lab's start. To count those of
// an action, take the difference of before and after.
func (l *Lab) RequestsBy(user string) (int, error) {
	all, err := l.Requests()
	count := 0
	for _, r := range all {
		if r.User == user {
			count++
		}
	}
	return count, err
}

// auditEvent is the part used here of audit.k8s.io/v1 Event.
type auditEvent struct {
	AuditID    string `json:"auditID"`
	Verb       string `json:"verb"`
	RequestURI string `json:"requestURI"`
	UserAgent  string `json:"userAgent"`
	User       struct {
		Username string `json:"username"`
	} `json:"user"`
	RequestReceivedTimestamp time.Time `json:"requestReceivedTimestamp"`
}
