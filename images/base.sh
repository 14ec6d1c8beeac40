#!/bin/sh
# A small Debian as a tar on standard output, made from packages: the base of the
# image where no registry has one.
set -eu
exec mmdebstrap --quiet --variant=minbase --include=ca-certificates "${1:-bookworm}" -
