#!/bin/sh
# Installs the programs that "make bench-peers" compares with, on Debian and as
# root. No nginx is started: the comparison starts its own.
set -eu

packages=
for program in nginx:nginx-light zip:zip 7z:p7zip-full curl:curl aria2c:aria2; do
    command -v "${program%%:*}" >/dev/null || packages="$packages ${program##*:}"
done
[ -n "$packages" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed:$packages (names of Debian's packages)" >&2
    exit 1
fi
# Debian starts servers when it installs them, unless this says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
# shellcheck disable=SC2086 # several words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
