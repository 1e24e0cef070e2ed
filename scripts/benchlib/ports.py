"""Many packet ports: time to start and to stop with them, and memory, beside the kernel's bridge.

`scripts/bench ports`. Each row is one start from a configuration of N ports and one SIGTERM; what an empty
configuration takes in the same way is taken off. The kernel's bridge is given the same interfaces by one `ip -batch`, and
is then removed.
"""

import argparse
import os
import time

from . import machine
from .system import Failed, Server, directory, exit_on_sigterm, netns, run, target_folder, undoing

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NAMESPACES = ("vswb-ports", "vswb-ports-far")
HEADER = "| switch | ports | workers | start s | ms a port | stop s | ms a port | MiB a port | descriptors a port |"


def main(argv):
    """Measures, prints a table; 0 when all of it could be measured."""
    parser = argparse.ArgumentParser(prog="scripts/bench ports", description="Many packet ports beside the kernel's bridge.")
    parser.add_argument("--cases", default="100x2,100x16,100x32,400x2", metavar="PORTSxWORKERS[,…]")
    parser.add_argument("--bin", metavar="DIR", help="folder of vswitchd (default: where cargo puts it)")
    options = parser.parse_args(argv)
    options.bin = options.bin or os.path.join(target_folder(ROOT), "release")
    cases = [tuple(int(number) for number in case.split("x")) for case in options.cases.split(",")]
    exit_on_sigterm()
    print(f"{os.cpu_count()} CPUs, Linux {os.uname().release}, {machine.revision(ROOT)}\n")
    print(HEADER)
    print("|" + "---|" * (HEADER.count("|") - 1))
    failed = False
    for ports in sorted({ports for ports, _ in cases}):
        try:
            show("Linux bridge", ports, "", *kernel_bridge(ports))
        except Failed as error:
            failed = True
            print(f"Linux bridge, {ports} ports: {error}")
    for ports, workers in cases:
        try:
            show("vswitch", ports, workers, *vswitchd(options.bin, ports, workers))
        except Failed as error:
            failed = True
            print(f"vswitch, {ports} ports, {workers} workers: {error}")
    return int(failed)


def show(name, ports, workers, start, stop, mib=None, files=None):
    """One row."""
    each = [f"{seconds * 1000 / ports:.1f}" for seconds in (start, stop)]
    rest = ["" if number is None else f"{number / ports:.2f}" for number in (mib, files)]
    print(f"| {name} | {ports} | {workers} | {start:.2f} | {each[0]} | {stop:.2f} | {each[1]} | {' | '.join(rest)} |", flush=True)


def interfaces(stack, ports):
    """A namespace with that many veth ends that are up."""
    near, far = (netns(stack, name) for name in NAMESPACES)
    lines = [f"link add v{n} type veth peer name w{n} netns {far}\nlink set v{n} up\n" for n in range(ports)]
    batch(stack, near, lines)
    return near


def batch(stack, namespace, lines):
    """What one ip(8) does with these lines; how long it takes."""
    path = os.path.join(directory(stack), "batch")
    with open(path, "w", encoding="ascii") as file:
        file.writelines(lines)
    began = time.monotonic()
    run("ip", "-batch", path, netns=namespace, timeout=300)
    return time.monotonic() - began


def kernel_bridge(ports):
    """Seconds to give a bridge that many ports, and to remove it."""
    with undoing() as stack:
        near = interfaces(stack, ports)
        run("ip", "link", "add", "br0", "type", "bridge", netns=near)
        start = batch(stack, near, [f"link set v{n} master br0\n" for n in range(ports)])
        began = time.monotonic()
        run("ip", "link", "del", "br0", netns=near, timeout=300)
        return start, time.monotonic() - began


def vswitchd(folder, ports, workers):
    """Seconds to start and to stop, MiB and descriptors, over those of a vswitchd without ports."""
    with undoing() as stack:
        near = interfaces(stack, ports)
        bare = once(stack, folder, near, 0, workers)
        full = once(stack, folder, near, ports, workers)
        return [most - least for most, least in zip(full, bare)]


def once(stack, folder, namespace, ports, workers):
    """The same of one vswitchd, all of it."""
    place = directory(stack)
    with open(os.path.join(place, "vswitchd.toml"), "w", encoding="ascii") as file:
        file.write('[[bridge]]\nname = "br0"\n')
        file.writelines(f'[[port]]\nname = "v{n}"\nbridge = "br0"\ntype = "packet"\n' for n in range(ports))
    began = time.monotonic()
    server = Server(
        stack,
        "vswitchd",
        os.path.join(folder, "vswitchd"),
        *("--config", os.path.join(place, "vswitchd.toml"), "--socket", os.path.join(place, "ctl.sock")),
        *("--attach-socket", os.path.join(place, "attach.sock"), "--workers", workers),
        netns=namespace,
        directory=place,
    )
    server.wait_until(lambda: " ready " in whole(server.log), "ready", timeout=120)
    start = time.monotonic() - began
    # What silences the host goes on for a moment where there are many ports.
    time.sleep(0.02 * ports + 0.2)
    memory, files = server.rss_bytes() / 2**20, len(os.listdir(f"/proc/{server.pid}/fd"))
    began = time.monotonic()
    server.process.terminate()
    server.process.wait(300)
    return start, time.monotonic() - began, memory, files


def whole(path):
    """What is in a file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
