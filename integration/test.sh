#!/bin/bash
# Builds everything once and runs every test there is; ends with a summary.
# Arguments go to the tests, as in `integration/test.sh dockerfile`.
set -uo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
    echo "Tests make containers, mounts and networks, so they have to be run as root." >&2
    exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
begin=$(date +%s)

integration/setup.sh || exit 1
set_up=$(date +%s)

# Programs and tests in one go, so that both are built from the same dependencies; the
# black-box tests run what is in the target directory.
features=buildkitd/netavark
export BUILDKIT_TEST_NETAVARK=yes
cargo build --workspace --all-targets --features "$features" || exit 1
built=$(date +%s)

cargo test --workspace --features "$features" --no-fail-fast -- "$@" 2>&1 | tee "$log"
result=${PIPESTATUS[0]}
end=$(date +%s)

awk '
    / Running | Doc-tests / { sub(/^ */, ""); name = $0; sub(/ \(.*/, "", name) }
    /^test result:/ { passed += $4; failed += $6; ignored += $8; programs++ }
    /^test .* \.\.\. FAILED$/ { bad = bad "\n    " name ": " $2 }
    /^(tear-down|set-up) failed/ { bad = bad "\n    " name ": " $0; failed++ }
    END {
        printf "\n========\n%d passed, %d failed, %d ignored, in %d test programs\n", passed, failed, ignored, programs
        if (bad != "") print "failed:" bad
    }' "$log"
echo "set-up $((set_up - begin)) s, build $((built - set_up)) s, tests $((end - built)) s"
[ "$result" = 0 ] && echo "ALL TESTS PASSED" || echo "THERE ARE FAILURES"
exit "$result"
