#!/bin/sh
# Installs what building, running and testing need. Safe to run again: what is
# there stays as it is, and the second run takes no time.
#
#   integration/setup.sh          everything
#   integration/setup.sh run      only what the daemon itself needs
#   integration/setup.sh build    only what building needs with every feature, besides Rust
set -eu

cache="${BUILDKIT_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/buildkit-cni}"
suite="${BUILDKIT_TEST_SUITE:-bookworm}"
what="${1:-all}"

run_packages="runc crun git openssh-client iproute2 iptables nftables busybox-static ca-certificates"
build_packages="protobuf-compiler"
test_packages="docker-registry docker.io containerd podman openssl systemd-container mmdebstrap
    containernetworking-plugins python3-yaml python3-jsonschema python3-pip user-mode-linux kmod"

install_missing() {
    missing=""
    for package in "$@"; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    echo "setup: installing$missing"
    # Package scripts must not start services: tests start their own.
    policy=/usr/sbin/policy-rc.d
    made=""
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made=yes
    fi
    result=0
    # shellcheck disable=SC2086
    { apt-get -qq update &&
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing; } || result=$?
    [ -z "$made" ] || rm -f "$policy"
    return "$result"
}

# Debian 12 has no buildx of its own, so that of Debian 13 is unpacked beside
# the system, with its own lists: the system's apt configuration is not touched.
fetch_buildx() {
    buildx="$cache/tools/docker-buildx"
    [ ! -x "$buildx" ] || return 0
    if [ -x /usr/libexec/docker/cli-plugins/docker-buildx ]; then
        mkdir -p "$cache/tools"
        ln -sfn /usr/libexec/docker/cli-plugins/docker-buildx "$buildx"
        return 0
    fi
    echo "setup: fetching docker-buildx"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT INT TERM
    chmod 755 "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    # The mirror this system uses, so that it needs no other way out.
    mirror="${BUILDKIT_TEST_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
        grep '/debian/*$' | head -n 1)}"
    echo "deb [signed-by=$keys] $mirror trixie main" >"$work/sources.list"
    apt_in() {
        command=$1
        shift
        "$command" -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
            -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root -qq "$@"
    }
    apt_in apt-get update
    (cd "$work" && apt_in apt-get download docker-buildx && dpkg -x docker-buildx_*.deb unpacked)
    mkdir -p "$cache/tools"
    install -m 755 "$work/unpacked/usr/libexec/docker/cli-plugins/docker-buildx" "$buildx.new"
    mv "$buildx.new" "$buildx"
    rm -rf "$work"
    trap - EXIT INT TERM
}

# A root file system of Debian: NAME PACKAGES
make_debian() {
    tarball="$cache/images/$1.tar"
    [ ! -s "$tarball" ] || return 0
    echo "setup: making the root file system \"$1\""
    mkdir -p "$cache/images"
    "$(dirname "$0")/../images/base.sh" "$suite" "$2" >"$tarball.new"
    mv "$tarball.new" "$tarball"
}

# The schema of Kubernetes' API, out of a package that checks manifests.
fetch_schemas() {
    schemas="$cache/kubernetes"
    [ ! -d "$schemas" ] || return 0
    echo "setup: fetching the schema of Kubernetes' API"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT INT TERM
    /usr/bin/python3 -m pip download --quiet --no-deps --dest "$work" kubernetes-validate==1.37.0
    /usr/bin/python3 -m zipfile -e "$work"/kubernetes_validate-*.whl "$work/unpacked"
    mv "$work/unpacked/kubernetes_validate/kubernetes-json-schema/v1.34.0-local-strict" "$schemas"
    rm -rf "$work"
    trap - EXIT INT TERM
}

# shellcheck disable=SC2086
[ "$what" = run ] || install_missing $build_packages
[ "$what" != build ] || exit 0
# shellcheck disable=SC2086
install_missing $run_packages
[ "$what" = all ] || exit 0
# shellcheck disable=SC2086
install_missing $test_packages
fetch_buildx
fetch_schemas
# A base image with a package database and many files.
make_debian debian ""
# A machine that boots, to install the package on; users have their own services there.
make_debian machine systemd,systemd-sysv,runc,dbus,libpam-systemd,rootlesskit,uidmap
