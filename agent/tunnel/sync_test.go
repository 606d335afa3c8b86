package tunnel

import "testing"

func TestSecondSyncChangesNothing(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	before := h.view()
	if told := h.told(func() { must(t, d.Sync(t.Context(), two())) }); len(told) > 0 {
		t.Errorf("notifications of types %v", told)
	}
	if after := h.view(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}
