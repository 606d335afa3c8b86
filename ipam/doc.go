// Package ipam gives pods their addresses.
//
// A pool (IPPool) is cut into blocks of equal size. A node claims a block by
// creating the IPAMBlock object named after it, so the API server's uniqueness
// of names is the only lock there is; inside its blocks a node gives out
// addresses from memory and asks nobody.
//
//	Usable     which pools a node may claim from, and why not from the others
//	Store      claiming and releasing blocks, over the Kubernetes API
//	Block      the addresses of one block: which is next, and when it was freed
//	Allocator  a node's blocks: Assign, Free, Restore, Reconcile, Run
//
// What it promises: an address is never given to two pods at once, on one node
// or on two; an address in use is never forgotten; an address freed comes last
// in its block, and not within ReuseDelay while its pool has another one free
// on this node, which holds across a restart too.
//
// Every address of a block is given out, the first and the last included: pods
// hold a /32 or /128, so no address is a network or broadcast address to anyone.
package ipam

import (
	"errors"
	"time"
)

// ReuseDelay is how long a freed address is left alone while another is free:
// long enough for connections to its last owner to be over.
const ReuseDelay = 60 * time.Second

// The errors to tell apart, with errors.Is. Whatever else Assign returns means that
// the node's blocks have no room and the API did not let it claim another one.
var (
	// ErrClaimed is Store.Claim's answer when another node has the block.
	ErrClaimed = errors.New("block is claimed by another node")
	// ErrDenied is Store.Claim's answer when the API server's rules do not let this block be: above
	// all when its pool is being deleted. It is about that pool, not about the API.
	ErrDenied = errors.New("the API server does not let the block be claimed")
	// ErrExhausted: every block of every usable pool is claimed, and ours are full.
	ErrExhausted = errors.New("no free address")
	// ErrNoPool: no pool of this family may be used by this node.
	ErrNoPool = errors.New("no usable IPPool")
)

// Family is an IP version.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}
