#!/bin/sh
# boot.sh FOLDER NAME REPOSITORY BINARY: systemd as the first process of a machine of its own, with wrapdisk installed by
# packaging/install.sh, until standard input ends. Prints the process whose only child is that systemd.
#
# Runs in a mount namespace of its own (unshare --mount). The machine's root is this one's, under an overlay in memory: what
# it changes is gone with it. Its /proc/sys and /sys cannot be written, since those belong to this machine as well.
# It ends with standard input and not by a signal, so that nothing stays when whoever started it is killed.
set -eu
trap '' HUP INT TERM
top=$1 name=$2 repository=$3 binary=$4

inside() {
    mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
    cd "$top/root"
    # Of a wrapdisk that is installed here.
    rm -rf etc/wrapdisk var/lib/wrapdisk etc/systemd/system/wrapdisk*
    echo 0123456789abcdef0123456789abcdef > etc/machine-id
    mount -t proc proc proc
    mount --bind proc/sys proc/sys
    mount -o remount,bind,ro proc/sys
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs dev
    for device in null zero full random urandom tty fuse; do
        touch "dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    mkdir dev/shm dev/pts
    mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    for folder in run tmp root srv mnt; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
    # Nothing but this, and what install.sh installed, is found: no service of this machine starts a second time.
    mkdir -p run/units/sysinit.target.wants
    for unit in sysinit.target basic.target shutdown.target network-online.target timers.target multi-user.target \
        systemd-journald.service systemd-journald.socket; do
        cp "usr/lib/systemd/system/$unit" run/units/
    done
    ln -s ../systemd-journald.service run/units/sysinit.target.wants/
    mkdir former
    pivot_root . former
    umount -l former
    rmdir former
    # As systemd does where it starts a machine and a container's manager where it does that: credentials come this way.
    mount --make-rshared /
    exec env -i container=wrapdisk-test PATH=/usr/local/bin:/usr/sbin:/usr/bin \
        SYSTEMD_UNIT_PATH=/usr/local/lib/systemd/system:/run/units SYSTEMD_GENERATOR_PATH=/nonexistent \
        /usr/lib/systemd/systemd --system --unit=basic.target --log-target=journal
}
if [ "${5-}" = inside ]; then inside; fi

mount --make-rprivate /
mount -t tmpfs tmpfs "$top"
mkdir "$top/cgroup" "$top/upper" "$top/work" "$top/root"
# Debugging information is ten times the program, and this is memory.
strip --strip-debug -o "$top/wrapdisk" "$binary"
env -u PREFIX -u SBINDIR -u UNITDIR -u USERUNITDIR BINARY="$top/wrapdisk" DESTDIR="$top/upper" \
    "$repository/packaging/install.sh"
mount -t cgroup2 cgroup2 "$top/cgroup"
group=$top/cgroup/$name
mkdir "$group"
(
    echo 0 > "$group/cgroup.procs"
    exec unshare --cgroup --ipc --mount --net --pid --uts --fork --kill-child \
        sh "$0" "$top" "$name" "$repository" "$binary" inside </dev/null
) &
machine=$!
echo "$machine"
exec >/dev/null
cat >/dev/null || true
kill -KILL "$machine" || true
wait "$machine" 2>/dev/null || true
while ! grep -q '^populated 0' "$group/cgroup.events"; do sleep 0.02; done
find "$group" -depth -type d -exec rmdir {} \;
