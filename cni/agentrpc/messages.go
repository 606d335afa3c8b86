// Package agentrpc is the plugin's side of the agent's CNI service: the
// messages of api/agent/v1 as plain structs, their encoding, and one method a
// call.
//
// The generated code says the same and is what everybody else uses; importing
// it brings the protobuf runtime and grpc-go, whose start costs a plugin more
// than a millisecond a call. A test holds every message here against its
// generated twin, field by field, so the two cannot drift apart.
package agentrpc

// Attachment is one interface of one container.
type Attachment struct {
	ContainerID string
	Ifname      string
}

// AddRequest asks for an attachment to be made.
type AddRequest struct {
	Attachment   Attachment
	Netns        string
	PodNamespace string
	PodName      string
	PodUID       string
	MTU          uint32
}

// AddResponse is what was made.
type AddResponse struct {
	Host, Container Interface
	Addresses       []string
	Gateways        []string
	Routes          []Route
}

// Interface is a network device; Sandbox is empty on the host.
type Interface struct {
	Name    string
	MAC     string
	MTU     uint32
	Sandbox string
}

// Route is one of the container's; Gateway is empty when on-link.
type Route struct {
	Destination string
	Gateway     string
}

// DelRequest asks for an attachment to be taken away.
type DelRequest struct {
	Attachment Attachment
	Netns      string
}

// CheckRequest asks whether an attachment is still as prevResult said.
type CheckRequest struct {
	Attachment      Attachment
	Netns           string
	Host, Container Interface
	Addresses       []string
}

// GCRequest lists every attachment that is to stay.
type GCRequest struct{ Valid []Attachment }

// GCResponse says what was taken away and what could not be.
type GCResponse struct {
	Removed []Attachment
	Errors  []string
}

// StatusResponse lists what would keep an Add from succeeding.
type StatusResponse struct{ Problems []string }
