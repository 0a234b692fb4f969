#!/bin/busybox sh
# The lab's init, first stage: from the kernel's start to the change of root.
#
# It loads the modules and says "ready"; there the lab is saved, and every later run begins there.
# What a run is about comes over the control port: a settings file and the command, each padded
# to whole blocks. The host's / becomes the root, read-only below and a tmpfs above.

B=/bin/busybox
fail() {
  $B echo "lab: $*" >/dev/console
  [ ! -e /p/ctl ] || $B echo "fail $*" >&3
  $B sleep 0.2
  $B printf '\001' | $B dd of=/dev/port bs=1 seek=244 2>/dev/null
  $B poweroff -f
}

$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
while read -r module parameters; do
  $B insmod "/modules/$module" $parameters || fail "module $module cannot be loaded"
done </modules/order

# Ports appear when the host has announced them, a little after the driver.
tries=0
while [ "$($B ls /sys/class/virtio-ports | $B wc -l)" -lt 5 ]; do
  tries=$((tries + 1))
  [ $tries -lt 500 ] || fail "the virtio ports do not appear"
  $B usleep 10000
done
for port in /sys/class/virtio-ports/*; do
  read -r name <"$port/name"
  $B ln -s "/dev/${port##*/}" "/p/$name"
done

exec 3<>/p/ctl
echo ready >&3
read -r settings command <&3 || fail "no job came"
$B dd bs=4096 count="$settings" iflag=fullblock of=/settings <&3 2>/dev/null
$B dd bs=4096 count="$command" iflag=fullblock of=/command <&3 2>/dev/null
. /settings
$B date -s "@$NOW" >/dev/null
echo "$SEED" >/dev/urandom

P9=trans=virtio,version=9p2000.L,msize=512000,access=any
$B mount -t 9p -o $P9,ro,cache=loose root /lower || fail "the host's root cannot be mounted"
$B mount -t tmpfs -o size=75%,mode=755 upper /upper
$B mkdir /upper/files /upper/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work,index=off,metacopy=off,xino=off \
  overlay /root || fail "the overlay cannot be mounted"
for folder in proc sys dev run tmp mnt; do
  [ -d "/root/$folder" ] || $B mkdir -p "/root/$folder"
done
$B mount -t tmpfs -o mode=755 run /root/run
$B mkdir -p /root/run/lab /root/run/lock /root/lib/modules
$B mount --bind "/lower$MODULES" /root/lib/modules || fail "no modules at $MODULES"
share() {
  $B mkdir -p "/root$2"
  $B mount -t 9p -o $P9,rw,cache=mmap "$1" "/root$2" || fail "$2 cannot be shared"
}
shares
$B cp $B /second /settings /command /root/run/lab/
for folder in proc sys dev; do $B mount --move /$folder /root/$folder; done
# The control port stays open across the change, as descriptor 3.
exec $B switch_root /root /run/lab/busybox sh /run/lab/second
