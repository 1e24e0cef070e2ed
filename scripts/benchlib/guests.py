"""Guests on a switch: two under QEMU and a station in a namespace, attached to the Linux bridge and to ours.

    guest 1, 10.1.2.11/16  ──  the switch, namespace …s  ──  guest 2, 10.1.2.12/16
                                       │
                        station A, namespace …a, 10.1.2.1/16

The guests are Debian's cloud kernel and scripts/lib/initramfs.sh, as in the tests, with one CPU each. KVM where it boots
them, else emulation, and then the guests' own CPU decides nearly everything.
"""

import functools
import json
import os
import shutil

from .contenders import ADDRESS_A, PREFIX, Contender, Vswitch, quietly
from .system import Failed, Server, directory, run, target_folder, undoing, veth

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QEMU = "qemu-system-x86_64"
ADDRESSES = ("10.1.2.11", "10.1.2.12")
BOOT_SECONDS = 120
KVM_SECONDS = 15
MEMORY = "192M"

# What a card must not do for frames to have the MTU's size in the switch.
CARDS = {
    "gso": "",
    "mtu": "".join(f",{side}_{what}=off" for side in ("host", "guest") for what in ("tso4", "tso6", "ecn", "ufo")),
}


@functools.cache
def kernel():
    """The guests' kernel, which scripts/setup unpacks."""
    return os.path.join(target_folder(ROOT), "guest/vmlinuz")


# A console of an emulated machine that is busy may lose characters; the guest notices.
LINE_TRIES = 5


class Guest:
    """A guest that runs lines from its console and says how each ended."""

    def __init__(self, stack, name, folder, accelerator, *argv, netns=None):
        initramfs = os.path.join(folder, "initramfs")
        if not os.path.exists(initramfs):
            run(os.path.join(ROOT, "scripts/lib/initramfs.sh"), initramfs, "iperf3")
        self.server = Server(
            stack, name, QEMU, "-accel", accelerator, "-cpu", "max", "-m", MEMORY, "-nodefaults", "-no-user-config",
            "-display", "none", "-serial", "stdio", "-kernel", kernel(), "-initrd", initramfs,
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off", *argv, netns=netns, directory=folder,
        )  # fmt: skip
        self.seen = 0

    def booted(self, timeout=BOOT_SECONDS):
        """Waits until it takes lines."""
        self.wait_for("@@guest is ready\n", timeout)

    def run(self, line, timeout=60):
        """Runs a line of shell and returns what it wrote."""
        for _ in range(LINE_TRIES):
            self.server.tell(f"{len(line)} {line}")
            text = self.wait_for("@@ended ", timeout)
            if (code := self.wait_for("\n", timeout)) != "garbled":
                break
        if code != "0":
            raise Failed(f"{self.server.name}: {line}: {code}: {text.strip()}")
        return text

    def wait_for(self, what, timeout):
        """Waits until the console says this; what it said before."""
        said = b""

        def comes():
            nonlocal said
            with open(self.server.log, "rb") as log:
                log.seek(self.seen)
                said = log.read()
            return what.encode() in said

        self.server.wait_until(comes, repr(what), timeout)
        before = said.partition(what.encode())[0]
        self.seen += len(before) + len(what)
        return before.decode(errors="replace").replace("\r", "")


@functools.cache
def accelerator():
    """kvm where a guest boots with it (/dev/kvm may be there and not do), else tcg."""
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        with undoing() as stack:
            try:
                Guest(stack, "probe", directory(stack), "kvm").booted(KVM_SECONDS)
                return "kvm"
            except Failed:
                pass
    return "tcg"


class Attached(Contender):
    """Guests at one kind of switch, and how they are attached."""

    metrics = tuple(CARDS)

    def __init__(self, name, title, ours, label=None):
        self.ours = ours
        self.kind = name
        self.name = f"vm-{name}" + (f"@{label}" if label else "")
        self.title = title + (f" ({label})" if label else "")

    def missing(self):
        for program, package in ((QEMU, "qemu-system-x86"), ("busybox", "busybox-static")):
            if not shutil.which(program):
                return f"no {program}: apt-get install {package}"
        if not os.path.exists(kernel()):
            return "no kernel for guests: scripts/setup guests"
        return None if self.kind == "bridge" else self.ours.missing()

    def version(self):
        switch = Contender.version(self) if self.kind == "bridge" else self.ours.version()
        return f"{switch}, {run(QEMU, '--version').splitlines()[0]}, {accelerator()}"

    def join(self, link):
        link.netdevs = {"bridge": self.bridge, "tap": self.tap, "vhost-user": self.vhost_user}[self.kind](link)

    def bridge(self, link):
        """Taps and a veth end in the kernel's bridge."""
        for table in ("iptables", "ip6tables", "arptables"):
            quietly("sysctl", "-qw", f"net.bridge.bridge-nf-call-{table}=0", netns=link.s)
        run("ip", "link", "add", "br0", "type", "bridge", netns=link.s)
        veth("e0", link.a, "sa", link.s)
        for tap in ("tap1", "tap2"):
            run("ip", "tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr", netns=link.s)
        for dev in ("br0", "sa", "tap1", "tap2"):
            master = [] if dev == "br0" else ["master", "br0"]
            run("ip", "link", "set", dev, *master, "up", netns=link.s)
        run("ip", "address", "add", f"{ADDRESS_A}/{PREFIX}", "dev", "e0", netns=link.a)
        return [f"tap,id=net,ifname={tap},script=no,downscript=no" for tap in ("tap1", "tap2")]

    def switch(self, link):
        """Ours with a TAP port for the station."""
        _, ctl = self.ours.daemon(link)
        ctl("bridge", "add", "br0")
        ctl("port", "add", "ta", "--bridge", "br0", "--type", "tap", "--netns", link.a, "--address", f"{ADDRESS_A}/{PREFIX}")
        return ctl

    def tap(self, link):
        """Taps of ours that QEMU gets by the helper."""
        self.switch(link)
        helper = f"{os.path.join(self.ours.folder, 'vswitch-bridge-helper')} --socket {link.path('attach.sock')}"
        return [f"bridge,id=net,br=br0,helper={helper}"] * 2

    def vhost_user(self, link):
        """Rings in the guests' memory."""
        ctl = self.switch(link)
        for number in (1, 2):
            path = link.path(f"vm{number}.sock")
            ctl("port", "add", f"vm{number}", "--bridge", "br0", "--type", "vhost-user", "--path", path)
        return [("socket,id=char,path=" + link.path(f"vm{number}.sock"), "vhost-user,id=net,chardev=char") for number in (1, 2)]


def boot(link, card):
    """Both guests, with their addresses."""
    guests = []
    for number, netdev in enumerate(link.netdevs, 1):
        chardev, netdev = netdev if isinstance(netdev, tuple) else (None, netdev)
        # The same card and the same memory for all. No vectors: QEMU 7.2 crashes without KVM when it masks those of vhost-user.
        argv = [
            "-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on", "-machine", "memory-backend=mem",
            *(["-chardev", chardev] if chardev else []), "-netdev", netdev,
            "-device", f"virtio-net-pci,netdev=net,mac=52:54:00:00:00:{number:02x},vectors=0,romfile={CARDS[card]}",
        ]  # fmt: skip
        guests.append(Guest(link.stack, f"guest-{number}", link.directory, accelerator(), *argv, netns=link.s))
    for guest, address in zip(guests, ADDRESSES, strict=True):
        guest.booted()
        guest.run(f"ip link set eth0 up && ip addr add {address}/{PREFIX} dev eth0")
    return guests


def iperf(guest, address, seconds, omitted, *more):
    """iperf3's report of TCP between a guest and whoever listens at an address."""
    guest.run(f"for n in $(seq 20); do ping -q -c 1 -W 1 {address} && break; done")
    words = ["iperf3", "-J", "-c", address, "-t", str(seconds), "-O", str(omitted), *more]
    return json.loads(guest.run(" ".join(words), timeout=seconds + 60))


def attachments(folder, also, daemon_args):
    """Every way to attach guests, the kernel's own first; `also` maps labels to more folders of our binaries."""
    contenders = [Attached("bridge", "QEMU tap, Linux bridge; the station by veth", None)]
    for label, where in [(None, folder), *also.items()]:
        ours = Vswitch("tap", where, label, daemon_args)
        contenders.append(Attached("tap", "QEMU tap by vswitch-bridge-helper; the station by a TAP port", ours, label))
        contenders.append(Attached("vhost-user", "vhost-user; the station by a TAP port", ours, label))
    return contenders
