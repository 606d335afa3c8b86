#!/usr/bin/env bash
# Installs the Debian packages that the tests and the lab use, if any is missing. Says so in one line if none is.
#
#   test/prereqs.sh          what is said above
#   test/prereqs.sh lists    only brings apt's lists of packages up to date
#
# No service of theirs is started: a BIRD running on the machine would take the BGP port from the lab's.
set -euo pipefail

# command, or file: package
needs="
iptables-nft:iptables iptables-legacy:iptables ip6tables-nft:iptables ip:iproute2 tc:iproute2
ipset:ipset nft:nftables bird:bird2 birdc:bird2 conntrack:conntrack tcpdump:tcpdump
ps:procps sysctl:procps nsenter:util-linux ping:iputils-ping curl:curl git:git
iperf3:iperf3
gcc:gcc /usr/include/stdio.h:libc6-dev make:make flex:flex bison:bison bc:bc xz:xz-utils strip:binutils
"
PATH=$PATH:/usr/sbin:/sbin

missing() {
	for need in $needs; do
		command -v "${need%%:*}" >/dev/null || [[ $need == /* && -e ${need%%:*} ]] || echo "${need##*:}"
	done | sort -u
}

# Another program may be at it. apt waits for dpkg's lock if told to, but for that of its lists it does not.
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
patience=300
lists() {
	local deadline=$((SECONDS + patience)) said
	until said=$(apt-get update -qq 2>&1); do
		if [[ $said != *"Could not get lock"* ]] || ((SECONDS > deadline)); then
			echo "$said" >&2
			return 1
		fi
		sleep 0.2
	done
}

if [[ ${1-} == lists ]]; then
	lists
	exit
fi

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

# One run at a time: each puts the file below in place and takes it away.
exec 9<"${BASH_SOURCE[0]}"
flock 9
packages=$(missing)

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
lists
if [[ -n $packages ]]; then
	apt-get install -qq --no-install-recommends -o DPkg::Lock::Timeout=$patience $packages >/dev/null
fi

packages=$(missing)
[[ -z $packages ]] || { echo "prerequisites: still missing after installation:" $packages >&2; exit 1; }
echo "prerequisites: installed"
