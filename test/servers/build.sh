#!/usr/bin/env bash
# Builds the real servers the lab runs (etcd, kube-apiserver, kubectl, ...) from Go modules, because there may
# be no image registry and no release download to fetch them from.
#
#   test/servers/build.sh etcd kube-apiserver kubectl
#
# Each lands in build/servers/NAME-VERSION/NAME, and build/servers/NAME is a link to it, so that callers need
# not know versions. A server is built only when it is missing, or when its module files, the flags below or
# the Go version have changed. Any number of runs may overlap.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(cd "$here/../.." && pwd)/build/servers

# describe NAME sets: module (folder beside this script), pkg, version, cost, and ldflags.
# cost is the time of a cold build on two busy cores, in the order apiserver, controller-manager, the rest:
# they share most of their packages, so each is cheap after the first.
describe() {
	local require
	case $1 in
	etcd)
		module=etcd require=go.etcd.io/etcd/server/v3 pkg=go.etcd.io/etcd/server/v3 cost="1 minute" ;;
	kube-apiserver) cost="7 minutes" ;;&
	kube-controller-manager) cost="4 minutes" ;;&
	kube-scheduler | kube-proxy | kubelet | kubectl) cost="1 minute" ;;&
	kube-apiserver | kube-controller-manager | kube-scheduler | kube-proxy | kubelet | kubectl)
		module=kubernetes require=k8s.io/kubernetes pkg=k8s.io/kubernetes/cmd/$1 ;;
	*)
		echo "build.sh: unknown server '$1'" >&2
		exit 2 ;;
	esac

	# The module file is the only place a version is written.
	version=$(awk -v m="$require" '{ sub(/^require /, "") } $1 == m && $2 ~ /^v/ { print substr($2, 2); exit }' \
		"$here/$module/go.mod")
	[[ -n $version ]] || { echo "build.sh: no version of $require in $module/go.mod" >&2; exit 1; }

	ldflags="-s -w"
	if [[ $module == kubernetes ]]; then
		# Unstamped, the servers call themselves v0.0.0-master, and clients that look at the version turn away.
		local v major minor
		IFS=. read -r major minor _ <<<"$version"
		for v in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
			ldflags+=" -X $v.gitVersion=v$version -X $v.gitMajor=$major -X $v.gitMinor=$minor"
		done
	fi
	# Everything the binary is made from. It is kept beside the binary, in built-from; see current.
	key=$({ cat "$here/$module/go.mod" "$here/$module/go.sum"; echo "$ldflags $goversion"; } | sha256sum | cut -d' ' -f1)
	dir=$out/$1-$version
}

current() { # NAME: is the binary there, and built from what the module says now?
	[[ -x $dir/$1 && -L $out/$1 && $(readlink "$out/$1") == "$1-$version/$1" && $(cat "$dir/built-from" 2>/dev/null) == "$key" ]]
}

build() { # NAME
	local name=$1 pid=
	mkdir -p "$dir"

	# One build of a module at a time: its commands share packages, and two builds at once would compile each twice.
	exec 9>"$out/.$module.lock"
	if ! flock -n 9; then
		echo "waiting for another build of $module ..."
		flock 9
	fi
	if current "$name"; then # another run built it meanwhile
		exec 9>&-
		return
	fi

	echo "building $name $version (once, about $cost cold) ..."
	local start=$SECONDS tmp=$dir/.$name.$$ log=$dir/build.log told=0
	rm -f "$dir/.$name."* # left by runs that were killed
	# Built as a static file with the paths cut, so that every checkout shares the compiler's cache. The lock is not
	# handed down: a compiler that outlives a killed run must not block the next one.
	(
		cd "$here/$module"
		exec env CGO_ENABLED=0 GOWORK=off go build -p 2 -trimpath -buildvcs=false -ldflags "$ldflags" -o "$tmp" "$pkg"
	) >"$log" 2>&1 9>&- &
	pid=$!
	trap 'kill "$pid" 2>/dev/null || true; exit 130' INT TERM
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1 9>&-
		if (((SECONDS - start) / 60 > told)); then
			told=$(((SECONDS - start) / 60))
			echo "  $name: $((SECONDS - start)) s"
		fi
	done
	if ! wait "$pid"; then
		tail -n 30 "$log" >&2
		echo "build.sh: $name $version did not build; the whole log is $log" >&2
		exit 1
	fi
	trap - INT TERM

	# Renames, so that nobody ever runs half a file. The old key goes first and the new one comes last, so that a
	# run cut off between them builds again; until then an old binary and its key stay as they were.
	rm -f "$dir/built-from"
	mv -f "$tmp" "$dir/$name"
	ln -sfn "$name-$version/$name" "$out/.$name.link"
	mv -fT "$out/.$name.link" "$out/$name"
	echo "$key" >"$dir/built-from"
	rm -f "$log"
	exec 9>&-
	echo "built $name $version in $((SECONDS - start)) s"
}

if (($# == 0)); then
	echo "usage: $0 SERVER ... (etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, kubelet, kubectl)" >&2
	exit 2
fi

goversion=$(go env GOVERSION)
ready=
for name; do
	describe "$name"
	current "$name" || build "$name"
	ready+=", $name $version"
done
echo "servers ready: ${ready#, }"
