#!/usr/bin/env bash
# Fails, with the difference, if what is generated is not what the sources say. Changes nothing in the tree.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
fresh=build/_generated # go ignores folders with an underscore
rm -rf "$fresh"
test/generate.sh "$fresh"

status=0
# What generating would write, and what is in the tree but would not be generated any more.
while read -r file; do
	diff -u --label "$file" --label "$file (generated anew)" "$file" "$fresh/$file" || status=1
done < <({
	(cd "$fresh" && find . -type f)
	find ./deploy/crds -type f
	find ./api -name '*.pb.go' -o -name 'zz_generated.*'
} | sort -u)

if ((status)); then
	echo "generated files are not up to date: run make generate and commit the result" >&2
else
	echo "generated files are up to date"
fi
exit $status
