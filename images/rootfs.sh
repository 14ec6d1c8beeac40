#!/bin/sh
# The image's root file system: Debian's packages, unpacked without the package
# manager, its scripts and what only people read.
#
#   images/rootfs.sh DIRECTORY [PACKAGE...]
#
# Runs as root on a Debian whose apt reaches a mirror. DEBIAN_MIRROR names another.
set -eu

root=$1
shift
packages="$* busybox-static ca-certificates crun runc git iptables nftables openssh-client"
# Needed by scripts that do not run, or by parts of git that nobody calls here.
unwanted="adduser debconf debianutils dpkg git-man init-system-helpers liberror-perl mount openssl passwd perl perl-base
    perl-modules-5.36 libperl5.36 libpam0g libpam-modules libpam-modules-bin libpam-runtime libdb5.3 libgdbm6 libgdbm-compat4
    netbase tar util-linux util-linux-extra sensible-utils login libcrypt-dev bsdutils gcc-12-base"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
if [ -n "${DEBIAN_MIRROR:-}" ]; then
    . /etc/os-release
    rm -f /etc/apt/sources.list.d/*
    echo "deb $DEBIAN_MIRROR $VERSION_CODENAME main" >/etc/apt/sources.list
fi
mkdir -p "$work/debs/partial"
: >"$work/nothing-installed"
apt-get -qq update
# shellcheck disable=SC2086
apt-get -qq -o Dir::State::status="$work/nothing-installed" -o Dir::Cache::archives="$work/debs" \
    -o APT::Sandbox::User=root install --download-only --yes --no-install-recommends $packages

for directory in bin lib lib64 sbin; do
    mkdir -p "$root/usr/$directory"
    ln -s "usr/$directory" "$root/$directory"
done
mkdir -p "$root/var/lib/dpkg/status.d" "$root/etc/ssl/certs" "$root/root" "$root/run" "$root/proc" "$root/sys" \
    "$root/dev" "$root/etc/buildkit" "$root/home/user" "$root/var/lib/buildkit" "$root/var/tmp" "$root/tmp"
chmod 700 "$root/root"
chmod 1777 "$root/tmp" "$root/var/tmp"
for deb in "$work"/debs/*.deb; do
    name=$(dpkg-deb --field "$deb" Package)
    case " $(echo $unwanted) " in *" $name "*) continue ;; esac
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink \
        --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/info/*' \
        --exclude='./usr/share/locale/*' --exclude='./usr/share/lintian' --exclude='./usr/share/bug' \
        --exclude='./usr/share/bash-completion' --exclude='./usr/share/perl5' --exclude='./usr/share/zsh' \
        --exclude='./usr/share/git-core/contrib' --exclude='./usr/share/gitweb' --exclude='./usr/share/i18n' \
        --exclude='*/gconv/*' --exclude='*.a' --exclude='./etc/init.d' --exclude='./etc/cron*' --exclude='./lib/systemd'
    # What scanners read to know what is in here.
    dpkg-deb --field "$deb" >"$root/var/lib/dpkg/status.d/$name"
done

# With setuid they would need CAP_SYS_ADMIN, which containers do not have.
if [ -e "$root/usr/bin/newuidmap" ]; then
    apt-get -qq install --yes --no-install-recommends libcap2-bin >/dev/null
    chmod u-s "$root/usr/bin/newuidmap" "$root/usr/bin/newgidmap"
    setcap cap_setuid=ep "$root/usr/bin/newuidmap"
    setcap cap_setgid=ep "$root/usr/bin/newgidmap"
fi

# Servers and mail tools of git.
for tool in daemon http-backend imap-send shell fast-import http-push upload-archive sh-i18n--envsubst; do
    rm -f "$root/usr/lib/git-core/git-$tool"
done
rm -f "$root"/usr/bin/scalar "$root"/usr/lib/git-core/scalar "$root"/usr/bin/git-shell
find "$root/usr/lib/git-core" -type f -exec grep -lI '^#!.*perl' {} + | xargs -r rm -f

cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
for command in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -sf xtables-nft-multi "$root/usr/sbin/$command"
done
for applet in $("$root/usr/bin/busybox" --list); do
    [ -e "$root/usr/bin/$applet" ] || [ -e "$root/usr/sbin/$applet" ] || ln -s busybox "$root/usr/bin/$applet"
done

cat >"$root/etc/passwd" <<EOT
root:x:0:0:root:/root:/bin/sh
user:x:1000:1000:user:/home/user:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
EOT
cat >"$root/etc/group" <<EOT
root:x:0:
buildkit:x:999:
user:x:1000:
nogroup:x:65534:
EOT
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
echo 'user:100000:65536' | tee "$root/etc/subuid" >"$root/etc/subgid"
mkdir -p "$root/home/user/.local/share/buildkit" "$root/run/user/1000"
chown -R 1000:1000 "$root/home/user" "$root/run/user/1000"
chmod 700 "$root/run/user/1000"
ldconfig -r "$root"
# The same packages give the same bytes.
rm -rf "$root/var/cache/ldconfig"
