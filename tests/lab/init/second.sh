# The lab's init, second stage: process 1 in the host's root, with the control port as descriptor 3.
#
# It makes the devices that were asked for, runs the command, and reports its exit code.

B=/run/lab/busybox
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
. /run/lab/settings
off() {
  $B sync
  $B printf '\000' | $B dd of=/dev/port bs=1 seek=244 2>/dev/null
  $B poweroff -f
}
fail() {
  echo "fail $*" >&3
  $B sleep 0.2
  off
}
# Runs a step of the set-up; what it says is shown if it fails.
step() {
  if ! said=$("$@" 2>&1); then fail "\`$*\`: $(echo "$said" | $B tail -n 3 | $B tr '\n' ' ')"; fi
}

for port in /sys/class/virtio-ports/*; do
  read -r name <"$port/name"
  $B ln -s "/dev/${port##*/}" "/run/lab/$name"
done
# A watcher on the host takes silence here for a hang of the whole lab. What comes from there is
# only to interrupt; a port can be opened once.
exec 5<>/run/lab/beat
(while :; do echo beat; $B sleep 1; done) >&5 3>&- &
$B cat <&5 >/dev/null 3>&- &
exec 5>&-

$B mkdir -p /dev/pts /dev/shm /dev/hugepages /dev/net
$B mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$B mount -t tmpfs -o mode=1777 shm /dev/shm
$B mount -t hugetlbfs huge /dev/hugepages
$B mount -t cgroup2 cgroup /sys/fs/cgroup
$B mount -t debugfs debug /sys/kernel/debug
$B mount -t tracefs trace /sys/kernel/tracing
[ -e /dev/fd ] || $B ln -s /proc/self/fd /dev/fd
for stream in 0:stdin 1:stdout 2:stderr; do
  [ -e "/dev/${stream#*:}" ] || $B ln -s "/proc/self/fd/${stream%:*}" "/dev/${stream#*:}"
done
[ -e /dev/net/tun ] || $B mknod -m 666 /dev/net/tun c 10 200
$B ip link set lo up
$B hostname lab
ulimit -n 65536

[ -e /dev/kvm ] || fail "the lab's kernel has no /dev/kvm"
# Persistent memory is found by its address; a device appears a little after its region.
nd=/sys/bus/nd/devices
if [ -n "$DEVDAX" ]; then
  step modprobe -a device_dax dax_pmem
  tries=0
  while region=$($B grep -lx "$DEVDAX" $nd/region*/resource); [ -z "$region" ]; do
    tries=$((tries + 1))
    [ $tries -lt 500 ] || fail "the memory at $DEVDAX does not appear"
    $B usleep 10000
  done
  region=${region%/resource}
  space=namespace${region##*/region}.0
  tries=0
  while [ ! -e "/sys/bus/nd/drivers/nd_pmem/$space" ] || [ ! -s "$region/dax_seed" ]; do
    tries=$((tries + 1))
    [ $tries -lt 500 ] || fail "$space has no driver"
    $B usleep 10000
  done
  seed=$(cat "$region/dax_seed")
  put() { echo "$1" >"$2" || fail "$2 does not take $1"; }
  put "$space" /sys/bus/nd/drivers/nd_pmem/unbind
  put ram "$nd/$seed/mode"
  put 2097152 "$nd/$seed/align"
  put "$(cat /proc/sys/kernel/random/uuid)" "$nd/$seed/uuid"
  put "$space" "$nd/$seed/namespace"
  put "$seed" /sys/bus/nd/drivers/dax_pmem/bind
  tries=0
  while [ ! -c /dev/dax0.0 ]; do
    tries=$((tries + 1))
    [ $tries -lt 500 ] || fail "/dev/dax0.0 does not appear"
    $B usleep 10000
  done
fi
if [ -n "$DAX" ]; then
  tries=0
  while pmem=; for device in /dev/pmem*; do [ -b "$device" ] && pmem=$device; done; [ -z "$pmem" ]; do
    tries=$((tries + 1))
    [ $tries -lt 500 ] || fail "/dev/pmem0 does not appear"
    $B usleep 10000
  done
  step mkfs.ext4 -qF -b 4096 "$pmem"
  $B mkdir -p "$DAX"
  step $B mount -t ext4 -o dax=always "$pmem" "$DAX"
fi
if [ -n "$NET" ]; then
  link=
  for path in /sys/class/net/*; do [ "${path##*/}" = lo ] || link=${path##*/}; done
  [ -n "$link" ] || fail "the network device does not appear"
  step ip link set "$link" name lab0
  step ip address add "$NET/24" dev lab0
  step ip link set lab0 up
fi
if [ -n "$RDMA" ]; then
  if [ -z "$NET" ]; then
    step ip link add lab0 type dummy
    step ip link set lab0 mtu 9000
    step ip address add "$RDMA/24" dev lab0
    step ip link set lab0 up
  fi
  step rdma link add rxe0 type rxe netdev lab0
fi

# To open a file of the machine takes time for which no instructions are counted, more on a busy one. What every program
# opens is in memory from here on.
if [ -n "$ICOUNT" ]; then
  for file in /etc/ld.so.cache /lib64/ld-linux-x86-64.so.2 /lib/*/libc.so.6 /lib/*/libgcc_s.so.1 /lib/*/libm.so.6; do
    step $B touch -c "$file"
  done
fi

# Pumps stand between the command and the ports, so that the command sees plain pipes.
$B mkfifo /run/lab/1 /run/lab/2
$B cat /run/lab/1 >/run/lab/out 3>&- &
out=$!
$B cat /run/lab/2 >/run/lab/err 3>&- &
err=$!
if [ -n "$INPUT" ]; then exec 4</run/lab/in; else exec 4</dev/null; fi
/bin/sh /run/lab/command <&4 >/run/lab/1 2>/run/lab/2 3>&- 4<&-
code=$?
exec 4<&-
# Whatever the command left running may hold its pipes open; then the rest is not waited for.
tries=0
while { $B kill -0 $out || $B kill -0 $err; } 2>/dev/null && [ $tries -lt 40 ]; do
  $B usleep 25000
  tries=$((tries + 1))
done
echo "exit $code" >&3
off
