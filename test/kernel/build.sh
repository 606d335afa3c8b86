#!/usr/bin/env bash
# Builds the lab's second kernel: a user-mode Linux, which is a program, from Debian's source package and the options
# in the file config beside this script.
#
# It lands in build/kernel/linux-VERSION-CONFIG/linux, CONFIG being the first digits of a hash of the configuration,
# and build/kernel/linux is a link to it. It is built only when it is missing, or when apt offers another version of
# the source or the configuration has changed. Any number of runs may overlap.
set -euo pipefail

package=linux-source-6.12
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(cd "$here/../.." && pwd)/build/kernel
work=$out/.work
log=$out/build.log
PATH=$PATH:/usr/sbin:/sbin

fail() {
	echo "kernel: $*" >&2
	exit 1
}

offered() { # the version of the source that apt offers, if any
	apt-cache policy "$package" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

describe() { # sets: version, key (everything the kernel is made from), dir
	version=$(offered)
	local options
	# This script's way of building belongs to it as the options do; count up when it changes what comes out.
	options=$({ echo "recipe 1"; cat "$here/config"; } | sha256sum | cut -c1-10)
	# Without package lists, a kernel with the right options is right, whatever its version.
	[[ -n $version ]] || version=$(sed -n "s/ $options\$//p" "$out/linux.built-from" 2>/dev/null) || true
	key="$version $options"
	dir=linux-$version-$options
}

current() {
	[[ -n $version && -x $out/$dir/linux && $(readlink "$out/linux") == "$dir/linux" && $(cat "$out/linux.built-from" 2>/dev/null) == "$key" ]]
}

fetch() { # unpacks the source into $work/source
	[[ -n $version ]] || return 1
	echo "fetching $package $version ..."
	rm -rf "$work"
	mkdir -p "$work/source" "$work/build" &&
		(cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$package=$version") &&
		dpkg-deb --fsys-tarfile "$work"/*.deb | tar -xO "./usr/src/$package.tar.xz" | tar -xJ --strip-components=1 -C "$work/source" &&
		rm "$work"/*.deb
}

# kmake is the kernel's make, below the priority of whatever else is going on.
kmake=(nice -n 10 make -s -C "$work/source" ARCH=um "O=$work/build"
	KBUILD_BUILD_USER=hoplite KBUILD_BUILD_HOST=lab KBUILD_BUILD_VERSION=1)

configure() {
	"${kmake[@]}" "KCONFIG_ALLCONFIG=$here/config" alldefconfig >"$log" 2>&1 9>&- || broken
	# Options that do not exist, or lack what they depend on, are dropped without a word.
	local line name wrong=
	while read -r line; do
		case $line in
		CONFIG_*) grep -qxF -- "$line" "$work/build/.config" || wrong+=$'\n'"  $line" ;;
		"# CONFIG_"*" is not set")
			name=${line#\# } name=${name%% *}
			if grep -q "^$name=" "$work/build/.config"; then wrong+=$'\n'"  $line"; fi ;;
		esac
	done <"$here/config"
	[[ -z $wrong ]] || fail "$package $version cannot be configured as test/kernel/config has it:$wrong"
}

compile() { # says how far it is every half minute
	local start=$SECONDS told=0 pid
	# The lock is not handed down: a compiler that outlives a killed run must not block the next one.
	(exec "${kmake[@]}" -j "$(nproc)" linux) >"$log" 2>&1 9>&- &
	pid=$!
	trap 'kill "$pid" 2>/dev/null || true; exit 130' INT TERM
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1 9>&-
		if (((SECONDS - start) / 30 > told)); then
			told=$(((SECONDS - start) / 30))
			echo "  kernel: $((SECONDS - start)) s, $(find "$work/build" -name '*.o' | wc -l) of about 1100 files"
		fi
	done
	wait "$pid" || broken
	trap - INT TERM
}

broken() {
	tail -n 30 "$log" >&2
	fail "$package $version did not build; the whole log is $log"
}

build() {
	mkdir -p "$out"
	exec 9>"$out/.lock"
	if ! flock -n 9; then
		echo "waiting for another build of the kernel ..."
		flock 9
	fi
	describe
	if current; then # another run built it meanwhile
		exec 9>&-
		return
	fi
	[[ $(uname -m) == x86_64 ]] || fail "user-mode Linux is for x86-64 only, and this is $(uname -m)"
	if ! fetch; then
		# Package lists that are a day old may name a version that is gone.
		"$here/../prereqs.sh" lists
		describe
		[[ -n $version ]] || fail "apt offers no $package here: it is in Debian 12's security updates"
		fetch || fail "cannot fetch $package $version"
	fi

	echo "building the kernel, $package $version (once, about 4 minutes on two busy cores) ..."
	local start=$SECONDS
	configure
	compile
	mkdir -p "$out/$dir"
	strip -o "$out/$dir/.linux" "$work/build/linux"
	cp "$work/build/.config" "$out/$dir/config"
	# Renames, so that nobody ever runs half a file, and the key last, so that a run cut off here builds again.
	rm -f "$out/linux.built-from"
	mv -f "$out/$dir/.linux" "$out/$dir/linux"
	ln -sfn "$dir/linux" "$out/.linux.link"
	mv -fT "$out/.linux.link" "$out/linux"
	echo "$key" >"$out/linux.built-from"
	rm -rf "$work" "$log" # the source is 1.6 GB
	exec 9>&-
	echo "built the kernel in $((SECONDS - start)) s"
}

describe
current || build
echo "kernel ready: $("$out/linux" --version)"
