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
	// asNumber is the cluster's autonomous system number (RFC 6793: up to 4294967294).
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967294
	// +kubebuilder:default=64512
	ASNumber int64 `json:"asNumber,omitempty"`

	// listenPort is the TCP port BGP speakers listen on and mesh peers connect to.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
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
// +kubebuilder:printcolumn:name="AS",type=integer,JSONPath=`.spec.asNumber`
// +kubebuilder:printcolumn:name="Port",type=integer,JSONPath=`.spec.listenPort`
// +kubebuilder:printcolumn:name="Mesh",type=boolean,JSONPath=`.spec.nodeMesh`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="a cluster has one BGPConfiguration: write metadata.name default"
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

// Resolved is the configuration with its defaults filled in; a nil receiver is
// a cluster without one.
func (c *BGPConfiguration) Resolved() BGPConfigurationSpec {
	mesh := true
	spec := BGPConfigurationSpec{}
	if c != nil {
		spec = c.Spec
	}
	if spec.ASNumber == 0 {
		spec.ASNumber = DefaultASNumber
	}
	if spec.ListenPort == 0 {
		spec.ListenPort = DefaultListenPort
	}
	if spec.NodeMesh == nil {
		spec.NodeMesh = &mesh
	}
	return spec
}
