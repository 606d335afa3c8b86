// Nodump forbids netlink's list functions, for go vet -vettool.
//
// The kernel may interrupt a dump when what it lists changes meanwhile; the
// caller then has only a part of the truth. Package netlinksafe of the CNI
// plugins has the same functions with a retry.
package main

import (
	"go/ast"
	"slices"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/unitchecker"
	"golang.org/x/tools/go/types/typeutil"
)

const netlink = "github.com/vishvananda/netlink"

// dumps are the functions and methods of netlink that netlinksafe has too,
// but for LinkByName, which has not dumped since Linux 5.5.
var dumps = []string{
	"AddrList", "LinkList", "RouteList", "RouteListFiltered", "RuleList", "RuleListFiltered",
	"QdiscList", "FilterList", "BridgeVlanList", "ConntrackDeleteFilters",
}

var analyzer = &analysis.Analyzer{
	Name: "nodump",
	Doc:  "forbid netlink dumps that return half a list when interrupted",
	Run:  run,
}

func main() { unitchecker.Main(analyzer) }

func run(pass *analysis.Pass) (any, error) {
	for _, file := range pass.Files {
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			f := typeutil.StaticCallee(pass.TypesInfo, call)
			if f != nil && f.Pkg() != nil && f.Pkg().Path() == netlink && slices.Contains(dumps, f.Name()) {
				pass.Reportf(call.Pos(), "netlink.%s may return half a list: use netlinksafe.%[1]s (github.com/containernetworking/plugins/pkg/netlinksafe)", f.Name())
			}
			return true
		})
	}
	return nil, nil
}
