package v1alpha1

import (
	"net/netip"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// IPAMBlockSpec says which node owns which range. It never changes: a block
// changes hands by being deleted and created again.
type IPAMBlockSpec struct {
	// cidr is the block's range, as a network address.
	CIDR string `json:"cidr"`

	// node is the name of the Node that owns the block.
	Node string `json:"node"`

	// pool is the name of the IPPool the block was claimed from.
	Pool string `json:"pool"`
}

// IPAMBlock is a node's claim to a range of addresses. Its name is made from
// its CIDR (see BlockName), so creating it is taking the lock on the range.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
type IPAMBlock struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPAMBlockSpec `json:"spec"`
}

// IPAMBlockList is a list of IPAMBlocks.
//
// +kubebuilder:object:root=true
type IPAMBlockList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []IPAMBlock `json:"items"`
}

var blockNameReplacer = strings.NewReplacer(".", "-", ":", "-", "/", "-")

// BlockName is the name of the IPAMBlock for a range: the CIDR with everything
// that a Kubernetes name may not hold turned into "-". IPv6 is written in full,
// so that no name begins with "-" and no two ranges share one.
func BlockName(block netip.Prefix) string {
	if block.Addr().Is6() {
		return blockNameReplacer.Replace(block.Addr().StringExpanded() + "/" + strconv.Itoa(block.Bits()))
	}
	return blockNameReplacer.Replace(block.String())
}

// ParseBlockName is the range a block's name stands for; ok is false when the
// name is not one BlockName makes.
func ParseBlockName(name string) (block netip.Prefix, ok bool) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return netip.Prefix{}, false
	}
	sep := "."
	if strings.Count(name, "-") == 8 {
		sep = ":"
	}
	block, err := netip.ParsePrefix(strings.ReplaceAll(name[:i], "-", sep) + "/" + name[i+1:])
	if err != nil || BlockName(block) != name {
		return netip.Prefix{}, false
	}
	return block, true
}
