"""What is measured. A metric is a function of a joined link that returns named values; FIELDS describes the values.

tcp1, tcp4   iperf3 with 1 or 4 streams from station A to B, the first second left out. The received rate is reported.
             CPU cost: the whole machine's busy time (/proc/stat: user, nice, system, irq, softirq) while the client
             runs, less other processes' (load.py), over all bytes moved.
rtt          one-byte TCP ping-pong by vswitch-bench, both ends blocking in read.
small        60-byte frames of one flow offered by one thread as fast as it can; delivered is what the receiving
             interface's kernel counter gains per second in mid-flood.
gso, mtu     iperf3 with one stream among two guests and a station in a namespace: from guest to guest, from a guest to the
             station and back; with the offloads that guests have, and with cards that take frames of the MTU's size only.
frames64, frames1500
             frames of that length that go round between two vhost-user ports and testpmd, both directions added up; and how far
             apart the CPUs were (line.py), the longer of before and after.
idle         vswitchd alone with 32 tap ports and 2 workers, nobody sending: CPU of the process over 10 s, and its memory.
"""

import functools
import json
import time

from .contenders import ADDRESS_A, ADDRESS_B
from .guests import ADDRESSES, boot, iperf
from .line import Line
from .load import Load
from .system import Failed, Server, run
from .vhost import loop

TCP_PORT, RTT_PORT = 5201, 5202
OMIT_SECONDS = 1
IDLE_PORTS, IDLE_WORKERS, IDLE_SECONDS = 32, 2, 10

# field: (title, unit, decimals, which way is better)
FIELDS = {
    "tcp1_gbps": ("TCP, 1 stream", "Gbit/s", 2, "higher"),
    "tcp4_gbps": ("TCP, 4 streams", "Gbit/s", 2, "higher"),
    "rtt_p50_us": ("TCP round trip, p50", "µs", 1, "lower"),
    "rtt_p99_us": ("TCP round trip, p99", "µs", 1, "lower"),
    "small_mpps": ("60-byte frames delivered", "M/s", 3, "higher"),
    "tcp1_cpu_s_per_gb": ("CPU cost of TCP, 1 stream", "s/GB", 3, "lower"),
    "tcp4_cpu_s_per_gb": ("CPU cost of TCP, 4 streams", "s/GB", 3, "lower"),
    "gso_guests_gbps": ("guest to guest", "Gbit/s", 2, "higher"),
    "gso_out_gbps": ("guest to namespace", "Gbit/s", 2, "higher"),
    "gso_in_gbps": ("namespace to guest", "Gbit/s", 2, "higher"),
    "mtu_guests_gbps": ("guest to guest, frames of the MTU's size", "Gbit/s", 2, "higher"),
    "mtu_out_gbps": ("guest to namespace, frames of the MTU's size", "Gbit/s", 2, "higher"),
    "mtu_in_gbps": ("namespace to guest, frames of the MTU's size", "Gbit/s", 2, "higher"),
    "frames64_mpps": ("64-byte frames between two vhost-user ports", "M/s", 2, "higher"),
    "frames1500_mpps": ("1500-byte frames between two vhost-user ports", "M/s", 2, "higher"),
    "frames64_line_ns": ("a cache line from CPU to CPU and back, at 64-byte frames", "ns", 0, "lower"),
    "frames1500_line_ns": ("a cache line from CPU to CPU and back, at 1500-byte frames", "ns", 0, "lower"),
    "idle_cpu_percent": ("idle, 32 ports: CPU", "%", 2, "lower"),
    "idle_rss_mib": ("idle, 32 ports: memory", "MiB", 1, "lower"),
}


class Setting:
    """How to measure: seconds a sample, the tool, and how far apart the CPUs are."""

    def __init__(self, seconds, tool):
        self.seconds = seconds
        self.tool = tool
        self.line = Line(tool)


def parse_iperf(report):
    """(received bits/s after the omitted start, bytes of the whole run, retransmissions) from iperf3 -J."""
    if "error" in report:
        raise Failed(f"iperf3: {report['error']}")
    end = report["end"]
    moved = sum(interval["sum"]["bytes"] for interval in report["intervals"])
    return end["sum_received"]["bits_per_second"], moved, end["sum_sent"].get("retransmits")


def tcp(link, setting, streams):
    """Bulk TCP from A to B."""
    server = Server(link.stack, "iperf3", "iperf3", "-s", "-1", "-p", TCP_PORT, netns=link.b, directory=link.directory)
    server.wait_listening(TCP_PORT)
    own_before = sum(process.cpu_seconds() for process in link.servers)
    load = Load()
    text = run(
        "iperf3", "-J", "-c", ADDRESS_B, "-p", TCP_PORT, "-P", streams, "-O", OMIT_SECONDS, "-t", setting.seconds, "--connect-timeout", 5000,
        netns=link.a, timeout=setting.seconds + 30,
    )  # fmt: skip
    load.end()
    own = sum(process.cpu_seconds() for process in link.servers) - own_before
    bits_per_s, moved, retransmits = parse_iperf(json.loads(text))
    prefix = f"tcp{streams}"
    return {
        f"{prefix}_gbps": bits_per_s / 1e9,
        f"{prefix}_cpu_s_per_gb": load.ours_s / (moved / 1e9),
        f"{prefix}_switch_process_cpu_s_per_gb": own / (moved / 1e9),
        f"{prefix}_stolen_cpus": load.stolen_cpus,
        f"{prefix}_retransmits": retransmits,
    }


def rtt(link, setting):
    """TCP round trips between A and B."""
    server = Server(
        link.stack, "rtt", setting.tool, "rtt-serve", "--listen", f"{ADDRESS_B}:{RTT_PORT}",
        netns=link.b, directory=link.directory,
    )  # fmt: skip
    server.wait_listening(RTT_PORT)
    text = run(
        setting.tool, "rtt-ping", "--connect", f"{ADDRESS_B}:{RTT_PORT}", "--seconds", setting.seconds, netns=link.a,
        timeout=setting.seconds + 30,
    )  # fmt: skip
    return {f"rtt_{key}": value for key, value in json.loads(text).items()}


def small(link, setting):
    """Small frames from A to B's address, unanswered."""
    margin = 0.5
    flood = Server(
        link.stack, "flood", setting.tool, "flood", "--dev", link.dev_a, "--src", link.mac_a, "--dst", link.mac_b,
        "--seconds", setting.seconds + 2 * margin, netns=link.a, directory=link.directory,
    )  # fmt: skip
    text = run(
        setting.tool, "count", "--dev", link.dev_b, "--delay", margin, "--seconds", setting.seconds, netns=link.b,
        timeout=setting.seconds + 30,
    )  # fmt: skip
    counted, offered = json.loads(text), flood.result(timeout=30)
    return {
        "small_mpps": counted["rx_packets"] / counted["seconds"] / 1e6,
        "small_offered_mpps": offered["accepted"] / offered["seconds"] / 1e6,
        "small_refused_mpps": offered["refused"] / offered["seconds"] / 1e6,
    }


def among_guests(link, setting, card):
    """Bulk TCP between two guests, and between one of them and the station."""
    one, two = boot(link, card)
    two.run("iperf3 -s -D")
    server = Server(link.stack, "iperf3", "iperf3", "-s", netns=link.a, directory=link.directory)
    server.wait_listening(TCP_PORT)
    values = {}
    for way, (address, *more) in {"guests": (ADDRESSES[1],), "out": (ADDRESS_A,), "in": (ADDRESS_A, "-R")}.items():
        bits_per_s, _, retransmits = parse_iperf(iperf(one, address, setting.seconds, OMIT_SECONDS, *more))
        values |= {f"{card}_{way}_gbps": bits_per_s / 1e9, f"{card}_{way}_retransmits": retransmits}
    return values


def idle(link, contender):
    """What vswitchd costs when nothing happens."""
    server, ctl = contender.daemon(link, "--workers", str(IDLE_WORKERS))
    ctl("bridge", "add", "br0")
    for number in range(IDLE_PORTS):
        ctl("port", "add", f"t{number}", "--bridge", "br0", "--type", "tap", "--netns", link.a)
    time.sleep(1)
    before, start = server.cpu_seconds(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    spent, elapsed = server.cpu_seconds() - before, time.monotonic() - start
    return {"idle_cpu_percent": 100 * spent / elapsed, "idle_rss_mib": server.rss_bytes() / 2**20}


METRICS = {
    "tcp1": lambda link, setting: tcp(link, setting, 1),
    "tcp4": lambda link, setting: tcp(link, setting, 4),
    "rtt": rtt,
    "small": small,
    "gso": functools.partial(among_guests, card="gso"),
    "mtu": functools.partial(among_guests, card="mtu"),
    "frames64": functools.partial(loop, length=64),
    "frames1500": functools.partial(loop, length=1500),
}
"""What contenders are measured for, each for those that it names."""


def applies(metric, contender):
    """Whether the contender is measured for this."""
    return metric in contender.metrics


def measure(metric, contender, link, setting):
    """One sample: sets the contender up on a fresh link and measures it once; (values, CPUs that others used)."""
    if metric != "idle":
        contender.join(link)
        # Guests are yet to boot.
        if link.dev_b:
            link.ready()
    load = Load()
    values = idle(link, contender) if metric == "idle" else METRICS[metric](link, setting)
    return values, load.end().foreign_cpus
