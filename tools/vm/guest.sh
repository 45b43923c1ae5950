#!/bin/busybox sh
# The guest's first process. It mounts the host's root over 9p (read only) below a layer of memory, gives the
# command a machine as Debian's init would leave it, and tells its exit status through the folder /run/vm.
b=/bin/busybox
fail() { echo "guest: $*" >/dev/ttyS0; $b poweroff -f; }
# "vm.NAME=VALUE" of the kernel's command line
word() { for w in $($b cat /proc/cmdline); do case $w in vm.$1=*) echo "${w#vm."$1"=}" ;; esac; done; }

$b mkdir -p /proc /sys /dev /root /memory /merged
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in /mods/*.ko; do $b insmod "$module" || echo "guest: insmod $module failed" >/dev/ttyS0; done

p9=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o ro,cache=loose,$p9 root /root || fail "cannot mount the host's root"
$b mount -t tmpfs -o size=60% memory /memory
$b mkdir /memory/upper /memory/work /memory/empty
$b mount -t overlay -o lowerdir=/root,upperdir=/memory/upper,workdir=/memory/work overlay /merged ||
    fail "cannot put a layer above it"

m=/merged
release=$($b uname -r)
$b mkdir -p $m/proc $m/sys $m/dev $m/run $m/tmp $m/lib/modules/"$release"
$b mount -t proc proc $m/proc
$b mount -t sysfs sys $m/sys
$b mount -t devtmpfs dev $m/dev
$b mkdir -p $m/dev/pts $m/dev/shm
$b mount -t devpts -o ptmxmode=666 pts $m/dev/pts
$b mount -t tmpfs shm $m/dev/shm
$b mount -t tmpfs run $m/run
for link in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
    [ -e $m/dev/"${link%%:*}" ] || $b ln -s "${link#*:}" $m/dev/"${link%%:*}"
done
$b mount -t cgroup2 cgroup $m/sys/fs/cgroup
$b mount -t bpf bpf $m/sys/fs/bpf
$b mount -t debugfs debug $m/sys/kernel/debug
$b mount -t tracefs trace $m/sys/kernel/tracing
$b mount -o bind /root"$(word modules)" $m/lib/modules/"$release" || fail "cannot mount the modules"
if [ "$(word btf)" = hidden ]; then
    $b mount -o bind /memory/empty $m/sys/kernel/btf || fail "cannot hide the kernel's BTF"
fi
$b mkdir -p $m/run/vm
$b mount -t 9p -o rw,cache=none,$p9 control $m/run/vm || fail "cannot mount the folder of the run"
$b ip link set lo up
$b hostname guest
echo 1 >/proc/sys/kernel/printk
for port in /sys/class/virtio-ports/*; do
    case $($b cat "$port/name") in
    out) out=/dev/${port##*/} ;;
    err) err=/dev/${port##*/} ;;
    esac
done
$b cut -d' ' -f1 /proc/uptime >$m/run/vm/booted
$b umount /proc
$b umount /sys
# Not chroot: the kernel starts modprobe in the first root, which so must be the one that holds it.
exec $b switch_root $m /bin/sh -c "
modprobe -q tun
setsid -w /bin/sh /run/vm/command </dev/null >$out 2>$err
echo \$? >/run/vm/status
dmesg >/run/vm/dmesg
sync
echo o >/proc/sysrq-trigger
sleep 60"
