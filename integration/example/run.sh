#!/bin/sh
# Starts the daemon, unless it runs, and builds the example next to this file.
#
#   integration/example/run.sh BINDIR          start and build
#   integration/example/run.sh BINDIR stop     stop the daemon
set -eu

here=$(cd "$(dirname "$0")" && pwd)
programs=$(cd "$1" && pwd)
state="${BUILDKIT_EXAMPLE_STATE:-$(cd "$here/../.." && pwd)/target/run}"
address="unix://$state/buildkitd.sock"
log="$state/buildkitd.log"
pid_file="$state/buildkitd.pid"

# Its pid, if it is ours and runs.
running() {
    [ -s "$pid_file" ] && pid=$(cat "$pid_file") &&
        [ "$(readlink "/proc/$pid/exe" 2>/dev/null | sed 's/ (deleted)$//')" = "$programs/buildkitd" ] && echo "$pid"
}

stop() {
    pid=$(running) || return 0
    kill "$pid"
    tries=0
    while kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 200 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    rm -f "$pid_file"
}

if [ "${2:-}" = stop ]; then
    stop
    echo "stopped"
    exit 0
fi

if [ "$(id -u)" != 0 ]; then
    echo "The daemon makes containers, so this has to be run as root." >&2
    exit 1
fi

mkdir -p "$state/tools" "$state/out"
# A daemon older than its program is replaced.
if pid=$(running) && [ "$(readlink "/proc/$pid/exe")" != "$programs/buildkitd" ]; then
    stop
fi
if ! running >/dev/null; then
    echo "Starting the daemon (log: $log)"
    PATH="$programs:$PATH" setsid "$programs/buildkitd" --addr "$address" --root "$state/root" \
        --oci-worker-net=cni >"$log" 2>&1 </dev/null &
    echo $! >"$pid_file"
fi
tries=0
until "$programs/buildctl" --addr "$address" debug workers >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -gt 150 ] || ! running >/dev/null; then
        echo "The daemon does not answer. Its last words:" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
    sleep 0.1
done

cp -u /bin/busybox "$state/tools/busybox"
rm -rf "$state/out"
"$programs/buildctl" --addr "$address" build --progress=plain --frontend=dockerfile.v0 \
    --local "context=$here" --local "dockerfile=$here" \
    --local "tools=$state/tools" --opt context:tools=local:tools \
    --output "type=local,dest=$state/out"

echo
echo "The build left this in $state/out:"
for file in "$state"/out/*; do
    echo "--- $(basename "$file")"
    cat "$file"
done
cat <<EOT

The daemon goes on running. Try

    export BUILDKIT_HOST=$address PATH=$programs:\$PATH
    buildctl build --frontend=dockerfile.v0 --local context=DIR --local dockerfile=DIR --output type=local,dest=OUT
    buildctl du
    docker buildx create --name mine --driver remote $address && docker buildx build --builder mine DIR

and \`make stop\` when you are done. State, log and socket are in $state.
EOT
