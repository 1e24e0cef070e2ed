"""VXLAN between two hosts, each with a station behind it: ours and the kernel's, in all four ways.

    station A            host 1                                     host 2             station B
    …a, 10.1.2.1/16      …s, 172.16.0.1    ═══ VXLAN, veth ═══    …t, 172.16.0.2      …b, 10.1.2.2/16

The underlay is a veth pair of MTU 1500; the stations have the MTU that fits, 1450.
"""

from .contenders import ADDRESS_A, ADDRESS_B, PREFIX, Contender, Vswitch, quietly
from .system import netns, run, veth

INNER_MTU = 1450


class Overlay(Contender):
    """One kind of host at each end."""

    def __init__(self, near, far, ours):
        self.ends = near, far
        self.ours = ours
        self.name = f"vxlan-{near}-{far}"
        self.title = f"VXLAN, {near} to {far}"

    def missing(self):
        return self.ours.missing() if "vswitch" in self.ends else None

    def version(self):
        versions = {"kernel": Contender.version(self), "vswitch": self.ours.version() if "vswitch" in self.ends else ""}
        return ", ".join(sorted({versions[end] for end in self.ends}))

    def join(self, link):
        second = netns(link.stack, link.s + "2")
        veth("under", link.s, "under", second)
        hosts = ((link.s, link.a, 1, ADDRESS_A), (second, link.b, 2, ADDRESS_B))
        for host, _, number, _ in hosts:
            run("ip", "address", "add", f"172.16.0.{number}/24", "dev", "under", netns=host)
        devices = []
        for kind, (host, station, number, address) in zip(self.ends, hosts, strict=True):
            set_up = self.kernel if kind == "kernel" else self.vswitch
            devices.append(set_up(link, host, station, number, address))
        link.stations(*devices, address=False)

    def kernel(self, link, host, station, number, address):
        """A vxlan device and a veth end in a bridge."""
        for table in ("iptables", "ip6tables", "arptables"):
            quietly("sysctl", "-qw", f"net.bridge.bridge-nf-call-{table}=0", netns=host)
        run("ip", "link", "add", "br0", "type", "bridge", netns=host)
        run("ip", "link", "add", "vx0", "type", "vxlan", "id", "42", "local", f"172.16.0.{number}",
            "remote", f"172.16.0.{3 - number}", "dstport", "4789", "dev", "under", netns=host)  # fmt: skip
        veth("e0", station, "p0", host)
        for dev in ("vx0", "p0"):
            run("ip", "link", "set", dev, "master", "br0", "up", netns=host)
        run("ip", "link", "set", "br0", "up", netns=host)
        run("ip", "link", "set", "e0", "mtu", str(INNER_MTU), netns=station)
        run("ip", "address", "add", f"{address}/{PREFIX}", "dev", "e0", netns=station)
        return "e0"

    def vswitch(self, link, host, station, number, address):
        """A vxlan port and a tap port."""
        _, ctl = self.ours.daemon(link, namespace=host, name=f"vswitchd-{number}")
        ctl("bridge", "add", "br0")
        ctl("port", "add", "vx0", "--bridge", "br0", "--type", "vxlan", "--vni", "42", "--local", f"172.16.0.{number}",
            "--remote", f"172.16.0.{3 - number}")  # fmt: skip
        ctl("port", "add", "e0", "--bridge", "br0", "--type", "tap", "--netns", station, "--mtu", str(INNER_MTU),
            "--address", f"{address}/{PREFIX}")  # fmt: skip
        return "e0"


def overlays(folder, also, daemon_args):
    """Every pair of ends, the kernel's own first; `also` maps labels to more folders of our binaries."""
    ours = Vswitch("tap", folder, daemon_args=daemon_args)
    pairs = [("kernel", "kernel"), ("vswitch", "vswitch"), ("vswitch", "kernel"), ("kernel", "vswitch")]
    contenders = [Overlay(*pair, ours) for pair in pairs]
    for label, other in also.items():
        more = Overlay("vswitch", "vswitch", Vswitch("tap", other, label, daemon_args))
        more.name += f"@{label}"
        contenders.append(more)
    return contenders
