package v1alpha1

// BlocksFinalizer keeps an IPPool that is being deleted until no IPAMBlock
// names it. The controller puts it on every pool and takes it off.
const BlocksFinalizer = "hoplite.io/blocks"

// Condition types of an IPPool. Each has one writer.
const (
	// PoolReady is true when nodes may take addresses from the pool. All agents
	// come to the same, and any of them writes it.
	PoolReady = "Ready"
	// PoolInUse is true while a pool that is being deleted has blocks; other pools do not have it. The controller's.
	PoolInUse = "InUse"
	// PoolModeSupported is false while nodes lack what the pool's mode needs,
	// true after that, and absent where that was never so. The controller's.
	PoolModeSupported = "ModeSupported"
)

// Reasons of PoolReady.
const (
	ReasonUsable      = "Usable"
	ReasonDisabled    = "Disabled"
	ReasonOverlapping = "Overlapping"
	// ReasonDeleting: the pool is being deleted.
	ReasonDeleting = "Deleting"
	// ReasonUnsupportedMode: the agents are older than the pool's mode.
	ReasonUnsupportedMode = "UnsupportedMode"
)

// Reasons of PoolInUse and PoolModeSupported.
const (
	// ReasonBlocksClaimed: nodes have blocks of the pool.
	ReasonBlocksClaimed = "BlocksClaimed"
	// ReasonNodesWithoutSupport: some nodes' kernels have no such tunnel.
	ReasonNodesWithoutSupport = "NodesWithoutSupport"
)

// NodeTunnels is a condition that a Node has once a pool's mode has asked for a
// tunnel that its kernel does not have: false until that is over, then
// true. The node's agent writes it.
const NodeTunnels = "HopliteTunnels"

// Reasons of NodeTunnels, of which the last is PoolModeSupported's as well.
const (
	ReasonIPIPUnsupported    = "IPIPUnsupported"
	ReasonVXLANUnsupported   = "VXLANUnsupported"
	ReasonTunnelsUnsupported = "TunnelsUnsupported" // neither
	ReasonSupported          = "Supported"
)
