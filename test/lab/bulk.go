package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bulk is one TCP connection that carries data in full-size segments, at a
// steady rate, and is watched: what arrives is compared byte by byte with what
// was sent.
type Bulk struct {
	from, to       string
	client, server *net.TCPConn
	stop           context.CancelFunc
	both           sync.WaitGroup
	outcome        func() BulkOutcome

	// Of one goroutine each, until both have ended.
	sent     int64
	received int64
	gap      time.Duration
	sendErr  error
	recvErr  error
}

// BulkOutcome is what became of a Bulk.
type BulkOutcome struct {
	From, To       string
	Sent, Received int64 // bytes
	// LongestGap is the longest time without anything arriving.
	LongestGap time.Duration
	// SegmentSize is that of the sender at the end, in bytes. Retransmitted counts
	// segments that it sent again, Needless those of them that the receiver had
	// already: a busy machine, and packets that overtake others, make TCP impatient.
	SegmentSize, Retransmitted, Needless int
	// Err says what broke the connection, or spoiled the data.
	Err error
}

func (o BulkOutcome) String() string {
	s := fmt.Sprintf("%s to %s: %.1f MB sent, %.1f MB received, longest gap %s, segments of %d bytes, %d sent again, %d of those needlessly",
		o.From, o.To, float64(o.Sent)/1e6, float64(o.Received)/1e6, o.LongestGap.Round(time.Millisecond), o.SegmentSize, o.Retransmitted, o.Needless)
	if o.Err != nil {
		s += fmt.Sprintf(": %v", o.Err)
	}
	return s
}

// pattern is what is sent, over and over. Its length has no factor in common with that of packets.
var pattern = sync.OnceValue(func() []byte {
	p := make([]byte, 65521)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
})

// StartBulk connects and starts sending so many bits of data per second.
func StartBulk(ctx context.Context, from, to Endpoint, rate int) (*Bulk, error) {
	client, server, err := connect(ctx, from, to)
	if err != nil {
		return nil, err
	}
	sending, stop := context.WithCancel(context.Background())
	b := &Bulk{from: from.label(), to: to.label(), client: client, server: server, stop: stop}
	b.outcome = sync.OnceValue(b.finish)
	b.both.Go(func() { b.sendErr = b.send(sending, rate) })
	b.both.Go(func() { b.recvErr = b.receive() })
	return b, nil
}

// Stop stops sending and waits until all has arrived.
func (b *Bulk) Stop() BulkOutcome { return b.outcome() }

func (b *Bulk) finish() BulkOutcome {
	b.stop()
	// For what is on its way; a connection that does not move for so long is broken.
	_ = b.client.SetDeadline(time.Now().Add(20 * time.Second))
	_ = b.server.SetDeadline(time.Now().Add(20 * time.Second))
	b.both.Wait()
	o := BulkOutcome{From: b.from, To: b.to, Sent: b.sent, Received: b.received, LongestGap: b.gap}
	infoErr := control(b.client, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			o.SegmentSize, o.Retransmitted, o.Needless = int(info.Snd_mss), int(info.Total_retrans), int(info.Dsack_dups)
		}
		return err
	})
	b.client.Close()
	b.server.Close()
	o.Err = errors.Join(b.sendErr, b.recvErr, infoErr)
	if o.Err == nil && o.Sent != o.Received {
		o.Err = errors.New("not all that was sent has arrived")
	}
	return o
}

func (b *Bulk) send(ctx context.Context, rate int) error {
	data := append(pattern(), pattern()...)
	const chunk = 16 << 10
	for begun := time.Now(); ctx.Err() == nil; {
		if ahead := time.Duration(float64(b.sent)*8/float64(rate)*float64(time.Second)) - time.Since(begun); ahead > 0 {
			time.Sleep(ahead)
		}
		at := int(b.sent % int64(len(data)/2))
		n, err := b.client.Write(data[at : at+chunk])
		b.sent += int64(n)
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return b.client.CloseWrite()
}

func (b *Bulk) receive() error {
	data := append(pattern(), pattern()...)
	buf := make([]byte, 32<<10)
	for last := time.Now(); ; {
		n, err := b.server.Read(buf)
		now := time.Now()
		b.gap, last = max(b.gap, now.Sub(last)), now
		if at := int(b.received % int64(len(data)/2)); !bytes.Equal(buf[:n], data[at:at+n]) {
			return fmt.Errorf("what arrived after %d bytes is not what was sent", b.received)
		}
		b.received += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
	}
}
