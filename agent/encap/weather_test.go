package encap

import "time"

// weather is how often things happen, in the same parts: while all is well
// between nodes, one that hears of a mode late matters most.
type weather struct{ mode, stop, start, disconnect, connect, hear, apply, deliver, wait int }

var weathers = []weather{
	{mode: 2, stop: 2, start: 6, disconnect: 2, connect: 8, hear: 15, apply: 25, deliver: 30, wait: 10},
	{mode: 1, stop: 0, start: 9, disconnect: 0, connect: 20, hear: 1, apply: 20, deliver: 39, wait: 10},
	{mode: 1, stop: 1, start: 1, disconnect: 0, connect: 20, hear: 2, apply: 20, deliver: 45, wait: 10},
}

// step is one thing that happens.
func (m *model) step(w weather) {
	i, j := m.random.IntN(len(m.nodes)), m.random.IntN(len(m.nodes))
	n := m.nodes[i]
	happens := m.random.IntN(100)
	is := func(part int) bool {
		happens -= part
		return happens < 0
	}
	switch {
	case is(w.mode):
		m.mode = modes[m.random.IntN(len(modes))]
		m.note("the pool's mode becomes %s", m.mode)
	case is(w.stop):
		if n.running {
			m.stop(i)
		}
	case is(w.start):
		if !n.running {
			m.start(i)
		}
	case is(w.disconnect):
		m.disconnect(i, j)
	case is(w.connect):
		m.connect(i, j)
	case is(w.hear):
		if n.running {
			n.mode = m.mode
			m.apply(i)
		}
	case is(w.apply):
		if n.running {
			m.apply(i)
		}
	case is(w.deliver):
		m.deliver(i, j)
	default:
		m.wait(time.Duration(m.random.IntN(int(4 * time.Second))))
	}
	m.check()
}

// wait lets time pass. A message that is older than the hold time by then would
// have cost its session.
func (m *model) wait(d time.Duration) {
	m.now = m.now.Add(d)
	for i := range m.nodes {
		for j := range m.nodes {
			if line := m.lines[i][j]; len(line) > 0 && m.now.Sub(line[0].at) > slowest {
				m.note("session %d-%d breaks", i, j)
				m.disconnect(i, j)
			}
		}
	}
}
