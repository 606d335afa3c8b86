package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Chat is a TCP connection that is open and mostly idle: ten times a second a
// question is asked over it and answered.
type Chat struct {
	from, to       string
	client, server *net.TCPConn
	stop           context.CancelFunc
	talker, echo   sync.WaitGroup
	outcome        func() ChatOutcome

	mu      sync.Mutex
	answers int
	longest time.Duration
	err     error
}

// ChatOutcome is what became of a Chat.
type ChatOutcome struct {
	From, To string
	Answers  int
	// LongestAnswer is the longest time from a question to its answer.
	LongestAnswer time.Duration
	// Err says what broke the connection.
	Err error
}

func (o ChatOutcome) String() string {
	s := fmt.Sprintf("%s to %s: %d answers, the slowest after %s", o.From, o.To, o.Answers, o.LongestAnswer.Round(time.Millisecond))
	if o.Err != nil {
		s += fmt.Sprintf(": %v", o.Err)
	}
	return s
}

// StartChat connects, and returns when the first question has been answered.
func StartChat(ctx context.Context, from, to Endpoint) (*Chat, error) {
	client, server, err := connect(ctx, from, to)
	if err != nil {
		return nil, err
	}
	asking, stop := context.WithCancel(context.Background())
	c := &Chat{from: from.label(), to: to.label(), client: client, server: server, stop: stop}
	c.outcome = sync.OnceValue(c.finish)
	c.echo.Go(func() { _, _ = io.Copy(server, server) })
	if err := c.ask(); err != nil {
		c.finish()
		return nil, err
	}
	c.talker.Go(func() { c.talk(asking) })
	return c, nil
}

// Local is the address at which the connection begins.
func (c *Chat) Local() net.Addr { return c.client.LocalAddr() }

// Stop asks a last question and closes the connection.
func (c *Chat) Stop() ChatOutcome { return c.outcome() }

// State is what has become of it so far.
func (c *Chat) State() ChatOutcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ChatOutcome{From: c.from, To: c.to, Answers: c.answers, LongestAnswer: c.longest, Err: c.err}
}

func (c *Chat) finish() ChatOutcome {
	c.stop()
	c.talker.Wait()
	c.client.Close()
	c.server.Close()
	c.echo.Wait()
	return c.State()
}

func (c *Chat) talk(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		last := ctx.Err() != nil
		if c.ask() != nil || last {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// ask asks and waits for the answer. A connection on which there is none for 20 s is broken.
func (c *Chat) ask() error {
	begun := time.Now()
	err := c.exchange(begun)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.longest = max(c.longest, time.Since(begun))
	if err == nil {
		c.answers++
	} else if c.err == nil {
		c.err = err
	}
	return err
}

func (c *Chat) exchange(now time.Time) error {
	if err := c.client.SetDeadline(now.Add(20 * time.Second)); err != nil {
		return err
	}
	question := binary.BigEndian.AppendUint64(nil, uint64(now.UnixNano()))
	if _, err := c.client.Write(question); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	answer := make([]byte, len(question))
	if _, err := io.ReadFull(c.client, answer); err != nil {
		return fmt.Errorf("wait for an answer: %w", err)
	}
	if string(answer) != string(question) {
		return fmt.Errorf("%x was answered by %x", question, answer)
	}
	return nil
}
