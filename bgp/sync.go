package bgp

import "time"

// Synced is closed once the initial routes are in: SetPeers has been called after Start (or before), and every peer
// then configured has sent its End-of-RIB markers for the families negotiated (RFC 4724 section 2), or has had
// Config.EORDeadline to do so. It stays closed. Everything that came before is in the RIB by then, so Routes is what
// a restarted node may prune its kernel by.
func (s *Speaker) Synced() <-chan struct{} { return s.synced }

// checkSynced closes synced if nothing is waited for any more.
func (s *Speaker) checkSynced() {
	if !s.running.Load() || s.stopping.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isSynced || !s.peersSet {
		return
	}
	now := time.Now()
	late := 0
	for _, sess := range s.peers {
		switch {
		case sess.eorSeen:
		case now.Before(sess.deadline):
			return
		default:
			late++
		}
	}
	s.isSynced = true
	close(s.synced)
	s.log.Info("BGP is synchronised", "peers", len(s.peers), "without_end_of_rib", late)
}

// dropTimers stops what would call checkSynced later.
func (s *Speaker) dropTimers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sess := range s.peers {
		if sess.timer != nil {
			sess.timer.Stop()
		}
	}
}
