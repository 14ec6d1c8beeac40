#!/bin/sh
# A small Debian as a tar on standard output, made from packages: the base of the
# image where no registry has one. Without what only people read.
#
#   images/base.sh [SUITE [PACKAGE,...]]
set -eu
exec mmdebstrap --quiet --variant=minbase --include="ca-certificates${2:+,$2}" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    "${1:-bookworm}" -
