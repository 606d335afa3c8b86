// Package bgp is a node's BGP speaker: desired peers and own prefixes go in, learned routes and the state of the
// sessions come out.
//
// It wraps GoBGP, whose types never leave this package, and knows no kernel and no Kubernetes client. What the rest
// of the program gets is a narrow waist of desired state (SetPeers, SetPaths, SetImport: each call says everything,
// only the difference is carried out) and of level-triggered keys (Changes, TakeDirty, LookupAll: a key says "look
// again", never what happened).
//
// The order a restart needs (RFC 4724 section 4.1):
//
//	s := bgp.New(config)
//	s.SetImport(...)          // which prefixes the mesh may give us
//	s.SetPaths(ctx, ...)      // own prefixes, before any peer can ask for them
//	s.Start(ctx)
//	s.SetPeers(ctx, all)      // all of them in the first call: they decide when Synced closes
//	<-s.Synced()              // every peer's End-of-RIB, or its deadline
//	...                       // only now delete what Routes no longer has
//	s.Stop(ctx)               // no Cease: peers keep our routes until the next Start
//
// GoBGP keeps some of its configuration in package variables, so a process must not run two Speakers.
package bgp
