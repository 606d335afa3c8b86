#!/usr/bin/env bash
# Installs the Debian packages that the tests and the lab use, if any is missing. Says so in one line if none is.
#
# No service of theirs is started: a BIRD running on the machine would take the BGP port from the lab's.
set -euo pipefail

# command: package
needs="
iptables-nft:iptables iptables-legacy:iptables ip6tables-nft:iptables ip:iproute2 tc:iproute2
ipset:ipset nft:nftables bird:bird2 birdc:bird2 conntrack:conntrack tcpdump:tcpdump
ps:procps sysctl:procps nsenter:util-linux ping:iputils-ping curl:curl git:git
"
PATH=$PATH:/usr/sbin:/sbin

missing() {
	for need in $needs; do
		command -v "${need%%:*}" >/dev/null || echo "${need##*:}"
	done | sort -u
}

packages=$(missing)
if [[ -z $packages ]]; then
	echo "prerequisites: all there"
	exit 0
fi
if ((EUID)); then
	echo "prerequisites: missing, and only root can install them: apt-get install" $packages >&2
	exit 1
fi
command -v apt-get >/dev/null || { echo "prerequisites: missing, and no apt-get here; install what gives:" $packages >&2; exit 1; }

# Debian's packages ask this program before they start a service; 101 means no.
policy=/usr/sbin/policy-rc.d
saved=
restore() {
	rm -f "$policy"
	if [[ -n $saved ]]; then mv "$saved" "$policy"; fi
}
if [[ -e $policy ]]; then
	saved=$(mktemp "$policy.XXXXXX")
	mv "$policy" "$saved"
fi
trap restore EXIT
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

echo "prerequisites: installing" $packages
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --no-install-recommends $packages >/dev/null

packages=$(missing)
[[ -z $packages ]] || { echo "prerequisites: still missing after installation:" $packages >&2; exit 1; }
echo "prerequisites: installed"
