package ipam

import (
	"context"
	"net/netip"
)

// OwnedBlock is a block that the store says is this node's.
type OwnedBlock struct {
	Prefix netip.Prefix
	Pool   string // the name of the pool it was claimed from
	// Releasing: a Release of it has begun and may yet be carried out, until
	// the block is claimed again.
	Releasing bool
}

// Store is where nodes agree on who has which block. A Store speaks for one
// node. Each call ends when its context does. An error other than those named
// here means that the call may have been carried out, or may yet be.
type Store interface {
	// Claim makes the block this node's. It returns nil as well when the block was this node's
	// already, ErrClaimed when it is another's, and ErrDenied when the pool is not to have another block. Of any number of nodes
	// that claim a block only one gets nil, until it is released. No Release
	// called before, by this process or one before it, is carried out after it.
	Claim(ctx context.Context, pool Pool, block netip.Prefix) error
	// Release gives the block back if it is this node's; if it is not, or is
	// nobody's, that is no error. From before the first moment at which it may be
	// carried out, Owned shows the block as Releasing.
	Release(ctx context.Context, block netip.Prefix) error
	// Claimed are the blocks within the pool's range, of whatever size, that
	// any node has, as of now. It costs a listing of all blocks.
	Claimed(ctx context.Context, pool Pool) ([]netip.Prefix, error)
	// Owned are the blocks this node has, as of now.
	Owned(ctx context.Context) ([]OwnedBlock, error)
}
