"""Two guests that send each other frames as fast as the switch between them can take them, without a guest: DPDK's testpmd with two
virtio-user ports, which are front ends of vhost-user as QEMU's are.

    testpmd, CPU 0: what comes by one port leaves by the other
        virtio_user0, 02:…:01 ═══ vm1 ══╗ the switch,
        virtio_user1, 02:…:02 ═══ vm2 ══╝ CPU 1

So many frames go round for ever, and are counted where testpmd receives them, both directions added up. The switch has one worker that
polls without a rest, as a poll-mode driver does. How far apart the two CPUs are is measured before and after each sample (line.py).
Huge pages are what DPDK wants, and are given back.
"""

import os
import re
import shutil
import time

from .contenders import Contender, OpenVswitch, Vswitch
from .system import Failed, Server

PAGE_MIB = 2
MEMORY_MIB = 256
"""What each of them takes at its start."""
TESTPMD_MIB, OVS_MIB = 1024, 512
"""And what each takes in the end."""
PAGES = f"/sys/kernel/mm/hugepages/hugepages-{PAGE_MIB * 1024}kB/nr_hugepages"
BURSTS = 16
"""Bursts of 32 frames that each port begins with."""
STARTS = 2
"""How often they are sent off, when too many of them are lost on their first way."""
TESTPMD = "dpdk-testpmd"
READY = "\nDone\n"
"""What it says after the state of the ports' links, before it takes commands."""
MACS = "02:00:00:00:00:01", "02:00:00:00:00:02"


def huge_pages(stack, mib):
    """Takes care that so many MiB of huge pages are free, until the stack unwinds."""

    def pages(mode, *count):
        """How many there are, or that there be so many."""
        try:
            with open(PAGES, mode, encoding="ascii") as file:
                return file.write(*map(str, count)) if count else int(file.read())
        except OSError as error:
            raise Failed(f"{PAGES}: {error.strerror}") from None

    before = pages("r")
    wanted = before + mib // PAGE_MIB
    stack.callback(pages, "w", before)
    pages("w", wanted)
    if pages("r") < wanted:
        raise Failed(f"no {mib} MiB of huge pages: memory is short or in pieces")


class FrontEnds(Contender):
    """A switch with two vhost-user ports."""

    metrics = "frames64", "frames1500"
    hands_over = True

    def missing(self):
        if os.cpu_count() < 2:
            return "it needs two CPUs: one for the switch and one for testpmd"
        if not os.path.exists(PAGES):
            return f"no huge pages of {PAGE_MIB} MiB"
        return None if shutil.which(TESTPMD) else f"no {TESTPMD}: apt-get install dpdk-dev"


class VswitchFrontEnds(FrontEnds):
    """Ours."""

    def __init__(self, folder, label=None, daemon_args=()):
        self.ours = Vswitch("tap", folder, label, ["--workers", "1", "--cpus", "1", "--poll", "busy", *daemon_args])
        self.name = "vswitch-vhost" + (f"@{label}" if label else "")
        self.title = "vswitch, vhost-user ports" + (f" ({label})" if label else "")

    def missing(self):
        return super().missing() or self.ours.missing()

    def version(self):
        return self.ours.version()

    def join(self, link):
        huge_pages(link.stack, TESTPMD_MIB)
        _, ctl = self.ours.daemon(link)
        ctl("bridge", "add", "br0")
        for port in ("vm1", "vm2"):
            ctl("port", "add", port, "--bridge", "br0", "--type", "vhost-user", "--path", link.path(port))


class OpenVswitchFrontEnds(FrontEnds):
    """Open vSwitch with DPDK: its poll-mode driver on CPU 1."""

    name, title = "ovs-dpdk", "Open vSwitch with DPDK, vhost-user ports, one poll-mode driver"
    program = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"

    def __init__(self):
        self.ovs = OpenVswitch(
            self.program,
            ("dpdk-init=true", "dpdk-lcore-mask=0x1", "pmd-cpu-mask=0x2", f"dpdk-socket-mem={MEMORY_MIB}",
             "dpdk-extra=--in-memory --no-pci"),
        )  # fmt: skip

    def missing(self):
        if not os.access(self.program, os.X_OK):
            return f"no {self.program}: apt-get install openvswitch-switch-dpdk"
        return super().missing() or self.ovs.missing()

    def version(self):
        return self.ovs.version()

    def join(self, link):
        huge_pages(link.stack, TESTPMD_MIB + OVS_MIB)
        vsctl = self.ovs.start(link)
        for port in ("vm1", "vm2"):
            vsctl("add-port", "br0", port, "--", "set", "Interface", port, "type=dpdkvhostuser")


def loop(link, setting, length):
    """Frames of `length` bytes a second, received by both ports, in millions."""
    ports = [
        f"--vdev=net_virtio_user{number},path={link.path(port)},server=0,queue_size=1024,mac={mac}"
        for number, (port, mac) in enumerate(zip(("vm1", "vm2"), MACS))
    ]
    testpmd = Server(
        link.stack, "testpmd", "stdbuf", "-oL", TESTPMD, "--lcores", "0@0,1@0", "--no-pci", "--in-memory", "--single-file-segments",
        "--socket-mem", MEMORY_MIB, "--log-level=error", *ports, "--", "--interactive", "--forward-mode=mac",
        f"--txpkts={length}", f"--eth-peer=0,{MACS[1]}", f"--eth-peer=1,{MACS[0]}", "--rxd=1024", "--txd=1024",
        directory=link.directory,
    )  # fmt: skip

    def said():
        with open(testpmd.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def show():
        """Received frames a second since the last time, of each port."""
        before = len(rates(said()))
        testpmd.tell("show port stats all")
        testpmd.wait_until(lambda: len(rates(said())) >= before + len(ports), "answer")
        return rates(said())[before : before + len(ports)]

    testpmd.wait_until(lambda: READY in said(), "link of both ports")
    for _ in range(STARTS):
        testpmd.tell(f"start tx_first {BURSTS}")
        show()
        time.sleep(1)
        if balanced(seen := show()):
            break
        testpmd.tell("stop")
    else:
        raise Failed(f"frames were lost at the start: {' and '.join(map(str, seen))} a second come to the two ports")
    time.sleep(setting.seconds)
    received = show()
    testpmd.tell("stop")
    testpmd.tell("quit")
    if not balanced(received):
        raise Failed(f"frames were lost: {' and '.join(map(str, received))} a second came to the two ports")
    return {f"frames{length}_mpps": sum(received) / 1e6}


def rates(text):
    """Every rate of received frames in testpmd's output."""
    return [int(rate) for rate in re.findall(r"Rx-pps:\s+(\d+)", text)]


def balanced(received):
    """Whether frames go round both ways, about as many."""
    return 0 < max(received) <= 2 * min(received)


def front_ends(folder, also, daemon_args):
    """The peer first; `also` maps labels to more folders of our binaries."""
    ours = [VswitchFrontEnds(folder, daemon_args=daemon_args)]
    ours += [VswitchFrontEnds(other, label, daemon_args) for label, other in also.items()]
    return [OpenVswitchFrontEnds(), *ours]
