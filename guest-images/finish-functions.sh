#!/bin/sh
# Finishes the function image; run by mmdebstrap in its own mount namespace, or as root.
#   finish-functions.sh ROOT FUNCTIONS OUT SEED
# ROOT is the new system, FUNCTIONS the folder of the sources. Leaves in OUT: functions.ext4, packages
# (name, tab, version) and checksums.json.
set -eu
root=$1 functions=$2 out=$3 seed=$4
home=/opt/varve

# What only installation reads: Perl's library beyond perl-base, media types, drivers for video
# hardware, the packages' own tests.
for path in /usr/share/perl /usr/share/perl5 '/usr/lib/*/perl' '/usr/lib/*/libz3.so*' '/usr/lib/*/mfx' \
    /usr/share/mime /usr/share/X11 /usr/share/icons; do
    # shellcheck disable=SC2086 # the pattern is to be expanded, below the new root
    rm -rf "$root"$path
done
find "$root/usr/lib/python3/dist-packages" -depth -type d -name tests -exec rm -rf {} +

mkdir -p "$root$home/varve_functions"
cp "$functions/worker.py" "$functions/smoke.py" "$functions/train.py" "$root$home/"
cp "$functions"/varve_functions/*.py "$root$home/varve_functions/"
chroot "$root" python3 "$home/train.py" "$home/digits.net"
chroot "$root" python3 -m compileall -q "$home"
chroot "$root" python3 "$home/smoke.py" "$seed" > "$out/checksums.json"
chroot "$root" dpkg-query --show --showformat='${Package}\t${Version}\n' > "$out/packages"

# Nothing of the machine on which the image is made stays in it.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/tmp/* \
    "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/apt.conf.d/99mmdebstrap \
    "$root$home/train.py"
: > "$root/etc/resolv.conf"
echo varve > "$root/etc/hostname"
echo '127.0.0.1 localhost varve' > "$root/etc/hosts"

# A bind mount shows the root without what is mounted in it.
mkdir "$out/root"
mount --bind "$root" "$out/root"
trap 'umount "$out/root"' EXIT
kib=$(du -sk "$out/root" | cut -f1)
inodes=$(find "$out/root" | wc -l)
# Room for block maps and folders; a guest writes to memory, not here, so a journal is of no use.
truncate -s "$((kib * 11 / 10 + 16384))K" "$out/functions.ext4"
mkfs.ext4 -q -F -L varve -m 0 -b 4096 -N "$((inodes + 1000))" -O ^has_journal -E root_owner=0:0 \
    -d "$out/root" "$out/functions.ext4"
