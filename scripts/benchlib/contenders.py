"""The switches compared, each between the same two stations.

    station A                    the switch                      station B
    namespace …a, 10.1.2.1/16    namespace …s                    namespace …b, 10.1.2.2/16

Every switch lives in a namespace of its own, with sockets, databases and logs in a private directory, so nothing of
the host's is touched or can interfere (a host's own Open vSwitch goes on undisturbed). Defaults hold wherever they
are not named here: MTU 1500, queue lengths, offloads.
"""

import os
import shutil

from .system import Failed, Server, directory, mac_of, netns, quietly, run, veth

ADDRESS_A, ADDRESS_B, PREFIX = "10.1.2.1", "10.1.2.2", 16


class Link:
    """Two stations that reach each other through a contender."""

    def __init__(self, stack):
        tag = f"vb{os.getpid()}"
        self.stack = stack
        self.directory = directory(stack)
        self.a, self.b, self.s = (netns(stack, tag + letter) for letter in "abs")
        self.dev_a = self.dev_b = None
        self.servers = []

    def serve(self, name, *argv, namespace=None, env=None):
        """Starts a process of the switch's."""
        server = Server(self.stack, name, *argv, netns=namespace or self.s, directory=self.directory, env=env)
        self.servers.append(server)
        return server

    def path(self, name):
        """A file in the private directory."""
        return os.path.join(self.directory, name)

    def stations(self, dev_a, dev_b, address=True):
        """Names the stations' interfaces, and gives them their addresses unless they have them."""
        self.dev_a, self.dev_b = dev_a, dev_b
        if address:
            for dev, namespace, ip in ((dev_a, self.a, ADDRESS_A), (dev_b, self.b, ADDRESS_B)):
                run("ip", "address", "add", f"{ip}/{PREFIX}", "dev", dev, netns=namespace)
                run("ip", "link", "set", dev, "up", netns=namespace)

    def veths_to_switch(self):
        """A veth pair from each station to the switch's namespace: ends e0 there, sa and sb here."""
        veth("e0", self.a, "sa", self.s)
        veth("e0", self.b, "sb", self.s)
        return "sa", "sb"

    def ready(self):
        """Both directions reach the other end, and so both ends and the switch know all addresses."""
        for namespace, ip in ((self.a, ADDRESS_B), (self.b, ADDRESS_A)):
            run("ping", "-q", "-c", "2", "-i", "0.05", "-W", "2", "-w", "10", ip, netns=namespace)
        self.mac_a, self.mac_b = mac_of(self.dev_a, self.a), mac_of(self.dev_b, self.b)


class Contender:
    """One way of joining the two stations."""

    name = ""
    title = ""
    # Whether it runs without being asked for by its own name.
    default = True
    # What it is measured for.
    metrics = ("tcp1", "tcp4", "rtt", "small")
    # Whether every frame goes from one CPU to the other in memory, so that a sample depends on how far apart they are.
    hands_over = False

    def missing(self):
        """Why it cannot run here, or None."""
        return None

    def version(self):
        """What exactly is measured."""
        return f"Linux {os.uname().release}"

    def join(self, link):
        """Sets the switch up and both stations' interfaces."""
        raise NotImplementedError


class Veth(Contender):
    """No switch at all: what the kernel can do between two namespaces."""

    name, title = "veth", "veth pair, no switch (reference)"

    def join(self, link):
        veth("e0", link.a, "e0", link.b)
        link.stations("e0", "e0")


class Bridge(Contender):
    """The kernel's bridge. Netfilter on bridges is on by default in a new namespace where br_netfilter is loaded."""

    name, title = "bridge", "Linux bridge, veth ports"

    def join(self, link):
        for table in ("iptables", "ip6tables", "arptables"):
            quietly("sysctl", "-qw", f"net.bridge.bridge-nf-call-{table}=0", netns=link.s)
        run("ip", "link", "add", "br0", "type", "bridge", netns=link.s)
        for end in link.veths_to_switch():
            run("ip", "link", "set", end, "master", "br0", netns=link.s)
        run("ip", "link", "set", "br0", "up", netns=link.s)
        link.stations("e0", "e0")


class Vswitch(Contender):
    """Ours: vswitchd from a folder of binaries, driven by vswitchctl. The configuration is empty, whatever the host's."""

    def __init__(self, kind, folder, label=None, daemon_args=()):
        self.kind = kind
        self.folder = folder
        self.daemon_args = list(daemon_args)
        self.name = f"vswitch-{kind}" + (f"@{label}" if label else "")
        # A plain TAP answers what offloads are worth, which is nobody's first question.
        self.default = kind != "plain"
        # The idle cost is asked of our daemon alone, once for each set of binaries.
        if kind == "tap":
            self.metrics = (*self.metrics, "idle")
        ports = {"tap": "tap ports", "packet": "packet ports on veth", "plain": "tap ports without offloads"}[kind]
        self.title = f"vswitch, {ports}" + (f" ({label})" if label else "")

    def missing(self):
        for program in ("vswitchd", "vswitchctl", "vswitch-bridge-helper"):
            if not os.access(os.path.join(self.folder, program), os.X_OK):
                return f"no {program} in {self.folder}: cargo build --release"
        return None

    def version(self):
        text = run(os.path.join(self.folder, "vswitchd"), "--version").strip()
        return " ".join([text, *self.daemon_args])

    def daemon(self, link, *more, namespace=None, name="vswitchd"):
        """Starts vswitchd, in the switch's namespace unless told, and returns it with a way to command it."""
        socket = link.path(f"{name}.sock")
        with open(link.path("vswitchd.toml"), "w", encoding="ascii"):
            pass
        server = link.serve(
            name, os.path.join(self.folder, "vswitchd"), "--config", link.path("vswitchd.toml"),
            "--socket", socket, "--log", "warn", *self.daemon_args, *more, namespace=namespace,
        )  # fmt: skip

        def ctl(*words):
            return run(os.path.join(self.folder, "vswitchctl"), "--socket", socket, *words)

        def answers():
            try:
                ctl("status")
            except Failed:
                return False
            return True

        server.wait_until(lambda: os.path.exists(socket) and answers(), "answer on its socket")
        return server, ctl

    def join(self, link):
        _, ctl = self.daemon(link)
        ctl("bridge", "add", "br0")
        if self.kind == "packet":
            for end in link.veths_to_switch():
                ctl("port", "add", end, "--bridge", "br0", "--type", "packet")
            link.stations("e0", "e0")
            return
        plain = ["--no-offload"] if self.kind == "plain" else []
        for end, namespace, ip in (("ta", link.a, ADDRESS_A), ("tb", link.b, ADDRESS_B)):
            ctl("port", "add", end, "--bridge", "br0", "--type", "tap", "--netns", namespace,
                "--address", f"{ip}/{PREFIX}", *plain)  # fmt: skip
        link.stations("ta", "tb", address=False)


class OpenVswitch(Contender):
    """Open vSwitch's userspace datapath, told to keep TSO (without which it manages a tenth)."""

    name, title = "ovs", "Open vSwitch, userspace datapath with TSO, veth ports"
    schema = "/usr/share/openvswitch/vswitch.ovsschema"

    def __init__(self, program="ovs-vswitchd", settings=("userspace-tso-enable=true",)):
        self.program = program
        self.settings = settings

    def missing(self):
        for program in ("ovsdb-tool", "ovsdb-server", self.program, "ovs-vsctl"):
            if not shutil.which(program):
                return f"no {program}: apt-get install openvswitch-switch"
        return None if os.path.exists(self.schema) else f"no {self.schema}"

    def version(self):
        return run(self.program, "--version").splitlines()[0]

    def start(self, link):
        """Starts it with a bridge br0; returns a way to command it."""
        home = link.directory
        env = dict(os.environ, OVS_RUNDIR=home, OVS_LOGDIR=home, OVS_DBDIR=home, OVS_SYSCONFDIR=home)
        database, socket = link.path("conf.db"), f"unix:{link.path('db.sock')}"
        run("ovsdb-tool", "create", database, self.schema, env=env)
        server = link.serve(
            "ovsdb-server", "ovsdb-server", database, f"--remote=p{socket}", f"--unixctl={link.path('ovsdb.ctl')}",
            "-vconsole:warn", env=env,
        )  # fmt: skip
        server.wait_until(lambda: os.path.exists(link.path("db.sock")), "database socket")

        def vsctl(*words):
            run("ovs-vsctl", f"--db={socket}", "--timeout=10", *words, env=env)

        vsctl("--no-wait", "init")
        vsctl("--no-wait", "set", "Open_vSwitch", ".", *(f"other_config:{setting}" for setting in self.settings))
        link.serve(
            "ovs-vswitchd", self.program, socket, f"--unixctl={link.path('vswitchd.ctl')}", "-vconsole:warn", env=env
        )
        vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        return vsctl

    def join(self, link):
        vsctl = self.start(link)
        for end in link.veths_to_switch():
            vsctl("add-port", "br0", end)
        link.stations("e0", "e0")


class Vde(Contender):
    """VDE: one switch process, and a plug process with a tap device in each station's namespace."""

    name, title = "vde", "VDE switch, vde_plug2tap"

    def missing(self):
        for program in ("vde_switch", "vde_plug2tap"):
            if not shutil.which(program):
                return f"no {program}: apt-get install vde2"
        return None

    def version(self):
        return run("vde_switch", "--version").splitlines()[0]

    def join(self, link):
        control = link.path("vde")
        switch = link.serve("vde_switch", "vde_switch", "--sock", control)
        switch.wait_until(lambda: os.path.exists(os.path.join(control, "ctl")), "control socket")
        for letter, namespace in (("a", link.a), ("b", link.b)):
            plug = link.serve(f"plug-{letter}", "vde_plug2tap", "--sock", control, "e0", namespace=namespace)
            plug.wait_until(lambda ns=namespace: has_interface(ns, "e0"), "tap device")
        link.stations("e0", "e0")


def has_interface(namespace, dev):
    """Whether the interface exists there."""
    try:
        run("ip", "link", "show", "dev", dev, netns=namespace)
    except Failed:
        return False
    return True


def all_contenders(folder, also, daemon_args):
    """Every contender in the order of the table; `also` maps labels to more folders of our binaries."""
    kinds = ("tap", "packet", "plain")
    ours = [Vswitch(kind, folder, daemon_args=daemon_args) for kind in kinds]
    for label, other in also.items():
        ours += [Vswitch(kind, other, label, daemon_args) for kind in kinds]
    return [Bridge(), *ours, OpenVswitch(), Vde(), Veth()]
