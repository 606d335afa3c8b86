// Package v1alpha1 holds Hoplite's custom resources, group hoplite.io.
//
// It defines types and the rules the API server enforces on them; it has no
// behaviour beyond reading a field with its default.
//
// +kubebuilder:object:generate=true
// +groupName=hoplite.io
package v1alpha1
