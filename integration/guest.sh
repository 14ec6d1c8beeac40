#!/bin/sh
# The first process of a kernel that tests have started (src/guest.rs). Makes of this machine's
# file system, which cannot be written to, one to work in, runs a command and turns it off.
#
#   guest.sh HIERARCHY OUT DIRECTORIES
#
# HIERARCHY is how cgroups are mounted, "unified" or "legacy"; OUT has the script "command" and
# gets the file "status"; DIRECTORIES, separated by colons, are those the command needs besides.
set -u

hierarchy=$1 out=$2 directories=$3

mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for link in fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    ln -s "/proc/self/${link#*:}" "/dev/${link%%:*}"
done
for place in /dev/shm /run /tmp /mnt /var/lib; do
    mount -t tmpfs -o mode=1777 tmpfs "$place"
done
echo "$out:$directories" | tr : '\n' | while read -r place; do
    mkdir -p "$place"
    mount -t hostfs -o "$place" host "$place"
done

# The modules are those of the package, and nobody loads them but the kernel itself.
mkdir -p /run/modules/lib /run/bin
ln -s /usr/lib/uml/modules /run/modules/lib/modules
printf '#!/bin/sh\nexec /sbin/modprobe -d /run/modules "$@"\n' >/run/bin/modprobe
chmod 755 /run/bin/modprobe
echo /run/bin/modprobe >/proc/sys/kernel/modprobe
# This kernel has no nftables, so the administrator has chosen the older kind of iptables.
for program in iptables ip6tables; do
    for what in "" -save -restore; do
        ln -s "/usr/sbin/$program-legacy$what" "/run/bin/$program$what"
    done
done
export PATH="/run/bin:/usr/sbin:/usr/bin:/sbin:/bin" HOME=/tmp
modprobe -a ip_tables ip6_tables

if [ "$hierarchy" = unified ]; then
    mount -t cgroup2 cgroup /sys/fs/cgroup
else
    mount -t tmpfs cgroup /sys/fs/cgroup
    while read -r controller _ _ enabled; do
        [ "$enabled" = 1 ] || continue
        mkdir "/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
    done </proc/cgroups
fi
ip link set lo up

sh "$out/command"
echo $? >"$out/status"
echo o >/proc/sysrq-trigger
sleep 10
