#!/bin/busybox sh
# shellcheck shell=sh
# The first program in a guest of tests and measurements. It runs lines from the serial console and says how each ended; nothing is
# echoed. Before each line is its length: a busy emulated machine may lose characters, and such a line is not run.
/bin/busybox mkdir -p /proc /sys /dev /tmp /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# In the order of their dependencies; one that the kernel has built in is not there.
for driver in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net; do
    [ ! -e /$driver.ko ] || insmod /$driver.ko
done
sysctl -q net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
ip link set lo up
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo
echo "@@guest is ready"
while read -r length line; do
    if [ "${#line}" != "$length" ]; then
        echo "@@ended garbled"
        continue
    fi
    eval "$line" </dev/null
    echo "@@ended $?"
done
