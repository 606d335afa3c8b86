package v1alpha1

import (
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// IPAMBlockSpec says which node owns which range. It never changes: a block
// changes hands by being deleted and created again.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a block's spec cannot be changed: delete the block, when its node is gone for good, and its range can be claimed anew",reason=FieldValueForbidden
type IPAMBlockSpec struct {
	// cidr is the block's range, as a network address.
	//
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="isCIDR(self)",messageExpression="'spec.cidr ' + self + ' is not an IP range: write a network address and prefix length, such as 10.244.0.64/26'"
	// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || string(cidr(self).masked()) == self",messageExpression="'spec.cidr %s is not a network address in its canonical form: write %s'.format([self, string(cidr(self).masked())])"
	// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || (cidr(self).ip().family() == 4 ? cidr(self).prefixLength() >= 20 : cidr(self).prefixLength() >= 116)",messageExpression="'spec.cidr ' + self + ' is larger than a block can be: write a prefix length from 20 to 32 (IPv4) or 116 to 128 (IPv6), equal to the blockSize of its pool'"
	CIDR string `json:"cidr"`

	// node is the name of the Node that owns the block.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`

	// pool is the name of the IPPool the block was claimed from.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Pool string `json:"pool"`
}

// IPAMBlock is a node's claim to a range of addresses. Its name is made from
// its CIDR (see BlockName), so creating it is taking the lock on the range.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:selectablefield:JSONPath=`.spec.node`
// +kubebuilder:selectablefield:JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == self.spec.cidr.replace('.', '-').replace(':', '-').replace('/', '-')",messageExpression="'a block is named after its range, since the name is what makes its owner the only one: write metadata.name %s'.format([self.spec.cidr.replace('.', '-').replace(':', '-').replace('/', '-')])"
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

// BlockName is the name of the IPAMBlock for a range: the CIDR in canonical form
// (RFC 5952 for IPv6) with everything that a Kubernetes name may not hold
// turned into "-". No two ranges share a name; the API server checks it.
func BlockName(block netip.Prefix) string {
	return blockNameReplacer.Replace(block.String())
}

// ParseBlockName is the range a block's name stands for; ok is false when the
// name is not one BlockName makes.
func ParseBlockName(name string) (block netip.Prefix, ok bool) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return netip.Prefix{}, false
	}
	// No IPv6 name reads as IPv4: with four dashes it has two in a row.
	for _, separator := range []string{".", ":"} {
		block, err := netip.ParsePrefix(strings.ReplaceAll(name[:i], "-", separator) + "/" + name[i+1:])
		if err == nil && block == block.Masked() && BlockName(block) == name {
			return block, true
		}
	}
	return netip.Prefix{}, false
}
