package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// DefaultBGPConfiguration is the name of the one BGPConfiguration a cluster has.
const DefaultBGPConfiguration = "default"

// Defaults that hold while no BGPConfiguration exists.
const (
	DefaultASNumber   = 64512
	DefaultListenPort = 179
)

// BGPConfigurationSpec is the BGP set-up all nodes share.
type BGPConfigurationSpec struct {
	// asNumber is the cluster's autonomous system number (RFC 6793: up to 4294967295).
	// +optional
	// +kubebuilder:default=64512
	ASNumber int64 `json:"asNumber,omitempty"`

	// listenPort is the TCP port BGP speakers listen on and mesh peers connect to.
	// +optional
	// +kubebuilder:default=179
	ListenPort int32 `json:"listenPort,omitempty"`

	// nodeMesh, true by default, makes every node peer with every other.
	// +optional
	// +kubebuilder:default=true
	NodeMesh *bool `json:"nodeMesh,omitempty"`
}

// BGPConfiguration is the BGP set-up all nodes share; the one named "default" is used.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
type BGPConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BGPConfigurationSpec `json:"spec"`
}

// BGPConfigurationList is a list of BGPConfigurations.
//
// +kubebuilder:object:root=true
type BGPConfigurationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BGPConfiguration `json:"items"`
}
