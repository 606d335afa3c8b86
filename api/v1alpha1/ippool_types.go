package v1alpha1

import (
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PoolMode says how a packet for a pod of this pool travels between nodes.
// docs/tunnels.md has what nodes make of it, and how they change from one to another.
//
// +kubebuilder:validation:Enum=Native;IPIP;IPIPCrossSubnet;VXLAN;VXLANCrossSubnet
type PoolMode string

// The pool modes.
const (
	// ModeNative routes packets as they are; the network between the nodes must know the pods' routes or the nodes share a subnet.
	ModeNative PoolMode = "Native"
	// ModeIPIP wraps every packet between nodes in IP (RFC 2003), 20 bytes; IPv4 only.
	ModeIPIP PoolMode = "IPIP"
	// ModeIPIPCrossSubnet is ModeIPIP towards nodes that are not on a directly connected subnet, ModeNative towards the rest.
	ModeIPIPCrossSubnet PoolMode = "IPIPCrossSubnet"
	// ModeVXLAN wraps every packet between nodes in VXLAN (RFC 7348), 50 bytes, between nodes' IPv6 addresses 70.
	ModeVXLAN PoolMode = "VXLAN"
	// ModeVXLANCrossSubnet is ModeVXLAN towards nodes that are not on a directly connected subnet, ModeNative towards the rest.
	ModeVXLANCrossSubnet PoolMode = "VXLANCrossSubnet"
)

// PoolModes are those that this release knows.
var PoolModes = []PoolMode{ModeNative, ModeIPIP, ModeIPIPCrossSubnet, ModeVXLAN, ModeVXLANCrossSubnet}

// Default block sizes, as prefix lengths: 64 addresses a block in either family.
const (
	DefaultBlockSizeIPv4 = 26
	DefaultBlockSizeIPv6 = 122
)

// IPPoolSpec is what an operator asks for.
//
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || cidr(self.cidr) == cidr(self.cidr).masked()",messageExpression="'spec.cidr %s is not a network address (it has host bits set): write %s'.format([self.cidr, string(cidr(self.cidr).masked())])",reason=FieldValueInvalid,fieldPath=".cidr"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || !has(self.blockSize) || (cidr(self.cidr).ip().family() == 4 ? self.blockSize >= 20 && self.blockSize <= 32 : self.blockSize >= 116 && self.blockSize <= 128)",messageExpression="'spec.blockSize %d is out of range: write a prefix length from %s'.format([self.blockSize, cidr(self.cidr).ip().family() == 4 ? '20 to 32 for an IPv4 pool (26 is the default)' : '116 to 128 for an IPv6 pool (122 is the default)'])",reason=FieldValueInvalid,fieldPath=".blockSize"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || (has(self.blockSize) ? self.blockSize : (cidr(self.cidr).ip().family() == 4 ? 26 : 122)) >= cidr(self.cidr).prefixLength()",messageExpression="'a block of spec.blockSize /%d does not fit in spec.cidr %s: write a blockSize of at least %d, or a larger cidr'.format([has(self.blockSize) ? self.blockSize : (cidr(self.cidr).ip().family() == 4 ? 26 : 122), self.cidr, cidr(self.cidr).prefixLength()])",reason=FieldValueInvalid,fieldPath=".cidr"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || cidr(self.cidr).ip().family() == 4 || !has(self.mode) || !self.mode.startsWith('IPIP')",messageExpression="'spec.mode ' + self.mode + ' carries IPv4 only, and spec.cidr ' + self.cidr + ' is IPv6: write Native, VXLAN or VXLANCrossSubnet'",reason=FieldValueInvalid,fieldPath=".mode"
// +kubebuilder:validation:XValidation:rule="self.cidr == oldSelf.cidr",messageExpression="'spec.cidr cannot be changed from ' + oldSelf.cidr + ', since pods hold addresses of it: create another IPPool with the new cidr, then set disabled: true on this one'",reason=FieldValueForbidden,fieldPath=".cidr"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || (has(self.blockSize) ? self.blockSize : (cidr(self.cidr).ip().family() == 4 ? 26 : 122)) == (has(oldSelf.blockSize) ? oldSelf.blockSize : (cidr(self.cidr).ip().family() == 4 ? 26 : 122))",message="spec.blockSize cannot be changed, since nodes hold blocks of that size: create another IPPool with the new blockSize, then set disabled: true on this one",reason=FieldValueForbidden,fieldPath=".cidr"
type IPPoolSpec struct {
	// cidr is the range pods' addresses come from, as a network address, for example 10.244.0.0/16.
	//
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="isCIDR(self)",messageExpression="'spec.cidr ' + self + ' is not an IP range: write a network address and prefix length, such as 10.244.0.0/16 or fd00:10:244::/48'"
	// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self).ip().family() == 4 || !string(cidr(self).ip()).startsWith(':')",message="spec.cidr begins with ::, a range that is reserved (RFC 4291 section 2.5): write one from your own address plan, such as fd00:10:244::/48"
	CIDR string `json:"cidr"`

	// blockSize is the prefix length of the blocks that nodes claim from the pool.
	// The default is 26 for IPv4 and 122 for IPv6: 64 addresses a block.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=128
	// +optional
	BlockSize *int32 `json:"blockSize,omitempty"`

	// mode says how packets for pods of this pool travel from node to node: as they are (Native), or
	// inside others between the nodes' addresses (IPIP, VXLAN), and with CrossSubnet so only to
	// nodes that are behind a router. It can be changed while pods run.
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

	// conditions: Ready is true when nodes may take addresses from the pool. InUse is there while the pool is being
	// deleted, and says who has blocks of it. ModeSupported is false while a node's kernel has not what the mode needs.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// IPPool is a range of pod addresses and how packets to them travel.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="NAT",type=boolean,JSONPath=`.spec.natOutgoing`
// +kubebuilder:printcolumn:name="Blocks",type=integer,JSONPath=`.status.blocks`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
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
