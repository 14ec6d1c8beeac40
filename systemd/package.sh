#!/bin/sh
# Makes a Debian package of programs that were built.
#
#   systemd/package.sh BINDIR OUT.deb
#
# BINDIR holds buildkitd, buildctl and buildkit-cni. The package needs the C library
# of this machine, or a newer one.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
programs=$(cd "$1" && pwd)
out=$2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
chmod 755 "$work"
make --silent -C "$here/.." install DESTDIR="$work" PREFIX=/usr PROGRAMS="$programs" UNITDIR=/lib/systemd/system
mkdir "$work/DEBIAN"
install -m 755 "$here/debian/postinst" "$here/debian/prerm" "$here/debian/postrm" "$work/DEBIAN/"
version=$("$programs/buildkitd" --version | cut -d' ' -f3)
cat >"$work/DEBIAN/control" <<EOT
Package: buildkit-cni
Version: ${version##*buildkit-cni.}
Architecture: $(dpkg --print-architecture)
Maintainer: buildkit-cni <buildkit-cni@localhost>
Section: admin
Priority: optional
Installed-Size: $(du -sk --exclude=DEBIAN "$work" | cut -f1)
Depends: libc6 (>= $(dpkg-query -W -f '${Version}' libc6 | cut -d- -f1)), libgcc-s1, runc | crun, systemd, ca-certificates
Recommends: git, rootlesskit, openssh-client, nftables
Description: build daemon that speaks the API of BuildKit
 Builds container images for docker buildx, nerdctl and buildctl. Every build
 step gets a network of its own. The daemon starts with its first client.
EOT
dpkg-deb --root-owner-group --build "$work" "$out" >/dev/null
