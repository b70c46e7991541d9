#!/usr/bin/env bash
# The main job, start to finish: a server with its defaults on the sample bucket,
# an organization with a key and a grant, the API call, the download, the ZIP.
# Usage: demo.sh FOLDER, the folder of the two commands.
set -euo pipefail

bin=$(cd "${1:?usage: demo.sh FOLDER}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
server=
stop() {
	if [ -n "$server" ]; then
		kill "$server" 2>/dev/null || true
		wait "$server" 2>/dev/null || true
	fi
	rm -rf "$work"
}
trap stop EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

export PATH="$bin:$PATH" DOWNLINK_DATA_DIR="$work/state"
cd "$work"

say "Start a server: SQLite for its state, a folder for the assets"
echo "\$ downlinkd serve --bucket file://$here/sample"
downlinkd serve --bucket "file://$here/sample" --listen 127.0.0.1:0 >server.out 2>server.log &
server=$!
for _ in $(seq 100); do
	grep -q listening server.out && break
	kill -0 "$server" 2>/dev/null || { cat server.log; exit 1; }
	sleep 0.1
done
url=$(sed -n 's/^listening on //p' server.out)
[ -n "$url" ] || { echo "the server did not start"; cat server.log; exit 1; }
cat server.out

say "Give somebody a key, and a grant for the workflow W1"
run downlinkd org create acme
echo '$ KEY=$(downlinkd key create --org acme)'
KEY=$(downlinkd key create --org acme)
run downlinkd grant acme W1

say "Call the API"
echo "\$ curl -X PUT -H \"Authorization: \$KEY\" $url/v0/workflows/W1/jobs/J1/download"
curl -fsS -X PUT -H "Authorization: $KEY" "$url/v0/workflows/W1/jobs/J1/download" |
	sed -E 's#(/packages/.{12})[^/]*#\1...#'

say "Download, with every checksum verified"
export DOWNLINK_URL=$url DOWNLINK_API_KEY=$KEY
run downlink get W1 J1

say "Look into it"
run downlink ls W1 J1
run downlink verify W1_J1.zip
if command -v unzip >/dev/null; then
	run unzip -tq W1_J1.zip
fi

say "Stop the server"
kill "$server"
wait "$server" && server=
echo "done"
