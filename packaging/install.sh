#!/bin/sh
# Installs wrapdisk: the program, the names by which mount(8) finds it, manual pages, completions, the systemd units.
#
#   cargo build --release --locked && sudo packaging/install.sh
#
# Variables, with their defaults:
#   BINARY=target/release/wrapdisk   what to install; it also writes its own manual pages and completions
#   PREFIX=/usr/local                bin, share and lib below it
#   SBINDIR=/usr/sbin                the mount helpers: mount(8) looks in /sbin only, whatever the PREFIX
#   UNITDIR=PREFIX/lib/systemd/system
#   USERUNITDIR=PREFIX/lib/systemd/user
#   DESTDIR=                         put in front of every path, to make a package
# No user or group is made: wrapdisk runs as whoever mounts.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
BINARY=${BINARY:-$here/../target/release/wrapdisk}
DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
SBINDIR=${SBINDIR:-/usr/sbin}
UNITDIR=${UNITDIR:-$PREFIX/lib/systemd/system}
USERUNITDIR=${USERUNITDIR:-$PREFIX/lib/systemd/user}
UNITS="wrapdisk@.service wrapdisk-vault.service wrapdisk-rotate.service wrapdisk-rotate.timer"
BINDIR=$PREFIX/bin
SHARE=$PREFIX/share

if [ $# -gt 0 ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    case $1 in -h | --help) exit 0 ;; *) exit 2 ;; esac
fi
if [ ! -x "$BINARY" ]; then
    echo "install.sh: $BINARY: no such program; build it (cargo build --release --locked) or set BINARY" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/man" "$work/completions"
"$BINARY" generate man "$work/man"
"$BINARY" generate completions "$work/completions"
if [ ! -s "$work/man/wrapdisk.1" ]; then
    echo "install.sh: $BINARY: wrote no manual pages; is it wrapdisk?" >&2
    exit 1
fi
for unit in $UNITS; do
    sed "s|@BINDIR@|$BINDIR|g" "$here/$unit" > "$work/$unit"
done

# put MODE FILE TARGET
put() {
    install -D -m "$1" "$2" "$DESTDIR$3"
}

put 755 "$BINARY" "$BINDIR/wrapdisk"
install -d "$DESTDIR$SBINDIR"
for name in mount.wrapdisk mount.fuse.wrapdisk; do
    # Relative, so that a staged tree is right as well.
    ln -sfr "$DESTDIR$BINDIR/wrapdisk" "$DESTDIR$SBINDIR/$name"
done
for page in "$work"/man/*.[1-8]; do
    put 644 "$page" "$SHARE/man/man${page##*.}/${page##*/}"
done
put 644 "$work/completions/wrapdisk.bash" "$SHARE/bash-completion/completions/wrapdisk"
put 644 "$work/completions/_wrapdisk" "$SHARE/zsh/site-functions/_wrapdisk"
put 644 "$work/completions/wrapdisk.fish" "$SHARE/fish/vendor_completions.d/wrapdisk.fish"
for unit in $UNITS; do
    put 644 "$work/$unit" "$UNITDIR/$unit"
done
# The rotation serves a user's own disks as well: systemctl --user.
for unit in wrapdisk-rotate.service wrapdisk-rotate.timer; do
    put 644 "$work/$unit" "$USERUNITDIR/$unit"
done
for example in fstab mount.conf vault.conf; do
    put 644 "$here/examples/$example" "$SHARE/doc/wrapdisk/examples/$example"
done
for text in LICENSE-MIT LICENSE-APACHE CHANGELOG.md; do
    put 644 "$here/../$text" "$SHARE/doc/wrapdisk/$text"
done
