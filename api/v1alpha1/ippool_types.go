package v1alpha1

import (
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PoolMode says how a packet for a pod of this pool travels between nodes.
//
// +kubebuilder:validation:Enum=Native;IPIP;IPIPCrossSubnet;VXLAN;VXLANCrossSubnet
type PoolMode string

// The pool modes.
const (
	// ModeNative routes packets as they are; the network between the nodes must know the pods' routes or the nodes share a subnet.
	ModeNative PoolMode = "Native"
	// ModeIPIP wraps every packet between nodes in IP (RFC 2003); IPv4 only.
	ModeIPIP PoolMode = "IPIP"
	// ModeIPIPCrossSubnet is ModeIPIP towards nodes that are not on a directly connected subnet, ModeNative towards the rest.
	ModeIPIPCrossSubnet PoolMode = "IPIPCrossSubnet"
	// ModeVXLAN wraps every packet between nodes in VXLAN (RFC 7348).
	ModeVXLAN PoolMode = "VXLAN"
	// ModeVXLANCrossSubnet is ModeVXLAN towards nodes that are not on a directly connected subnet, ModeNative towards the rest.
	ModeVXLANCrossSubnet PoolMode = "VXLANCrossSubnet"
)

// Default block sizes, as prefix lengths: 64 addresses a block in either family.
const (
	DefaultBlockSizeIPv4 = 26
	DefaultBlockSizeIPv6 = 122
)

// Condition types and reasons of an IPPool.
const (
	// PoolReady is true when nodes may take addresses from the pool.
	PoolReady = "Ready"

	ReasonUsable      = "Usable"
	ReasonDisabled    = "Disabled"
	ReasonOverlapping = "Overlapping"
	// ReasonUnsupportedMode: this release cannot carry the pool's mode yet.
	ReasonUnsupportedMode = "UnsupportedMode"
)

// IPPoolSpec is what an operator asks for.
type IPPoolSpec struct {
	// cidr is the range pods' addresses come from, as a network address, for example 10.244.0.0/16.
	CIDR string `json:"cidr"`

	// blockSize is the prefix length of the blocks that nodes claim from the pool.
	// The default is 26 for IPv4 and 122 for IPv6: 64 addresses a block.
	// +optional
	BlockSize *int32 `json:"blockSize,omitempty"`

	// mode says how packets between pods travel from node to node.
	// +optional
	// +kubebuilder:default=Native
	Mode PoolMode `json:"mode,omitempty"`

	// natOutgoing makes packets from the pool to anything outside all pools and nodes leave with their node's address.
	// +optional
	NATOutgoing bool `json:"natOutgoing,omitempty"`

	// nodeSelector limits the pool to the nodes whose labels match; absent means every node.
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// disabled stops new addresses and blocks being taken from the pool; what is in use stays in use.
	// +optional
	Disabled bool `json:"disabled,omitempty"`
}

// IPPoolStatus is what the cluster says about the pool.
type IPPoolStatus struct {
	// capacity is the number of addresses in the pool. It is capped at the largest 64-bit signed integer.
	// +optional
	Capacity int64 `json:"capacity,omitempty"`

	// blocks is the number of blocks nodes have claimed from the pool.
	// +optional
	Blocks int64 `json:"blocks"`

	// conditions: Ready is true when nodes may take addresses from the pool.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// IPPool is a range of pod addresses and how packets to them travel.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
type IPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   IPPoolSpec   `json:"spec"`
	Status IPPoolStatus `json:"status,omitempty"`
}

// Prefix is spec.cidr, parsed.
func (p *IPPool) Prefix() (netip.Prefix, error) { return netip.ParsePrefix(p.Spec.CIDR) }

// BlockBits is the prefix length of the pool's blocks, with the family's default where spec.blockSize is absent.
func (p *IPPool) BlockBits() int {
	if p.Spec.BlockSize != nil {
		return int(*p.Spec.BlockSize)
	}
	if prefix, err := p.Prefix(); err == nil && prefix.Addr().Is6() {
		return DefaultBlockSizeIPv6
	}
	return DefaultBlockSizeIPv4
}

// IPPoolList is a list of IPPools.
//
// +kubebuilder:object:root=true
type IPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []IPPool `json:"items"`
}
