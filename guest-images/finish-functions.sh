#!/bin/sh
# Finishes the function image; run by mmdebstrap in its own mount namespace, or as root.
#   finish-functions.sh ROOT FUNCTIONS OUT SEED
# ROOT is the new system, FUNCTIONS the folder of the sources. Leaves in OUT: functions.ext4, packages
# (name, tab, version) and checksums.json.
set -eu
root=$1 functions=$2 out=$3 seed=$4
home=/opt/varve

mkdir -p "$root$home/varve_functions"
cp "$functions/worker.py" "$functions/smoke.py" "$functions/train.py" "$root$home/"
cp "$functions"/varve_functions/*.py "$root$home/varve_functions/"
chroot "$root" python3 "$home/train.py" "$home/model.pickle"
chroot "$root" python3 -m compileall -q "$home"
chroot "$root" python3 "$home/smoke.py" "$seed" > "$out/checksums.json"
# Some packages have the word amd64 in their names, hence the explicit format.
chroot "$root" dpkg-query --show --showformat='${Package}\t${Version}\n' > "$out/packages"

# Nothing of the machine on which the image is made stays in it.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/tmp/* \
    "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/apt.conf.d/99mmdebstrap \
    "$root$home/train.py"
# Perl's library served the installation only; the few modules of perl-base stay.
rm -rf "$root"/usr/share/perl "$root"/usr/share/perl5 "$root"/usr/lib/*/perl
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
