"""What the numbers were measured on."""

import os
import platform
import subprocess

from .system import Failed, run


def first_line(path, key):
    """The value of the first `key : value` line of a /proc file."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return None


def read(path):
    """A one-line file, or None."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return None


def attempt(*argv):
    """First line of a command's output, or None."""
    try:
        return run(*argv).splitlines()[0]
    except (Failed, IndexError):
        return None


def revision(root):
    """The commit of the working tree, with -dirty if it differs."""
    done = subprocess.run(
        ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def describe(root):
    """CPU, kernel and versions."""
    with open("/etc/os-release", encoding="utf-8") as lines:
        release = dict(line.strip().split("=", 1) for line in lines if "=" in line)
    return {
        "host": platform.node(),
        "cpu": first_line("/proc/cpuinfo", "model name") or platform.machine(),
        "cpus": os.cpu_count(),
        "memory": first_line("/proc/meminfo", "MemTotal"),
        "virtual": attempt("systemd-detect-virt"),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "kernel": platform.release(),
        "system": release.get("PRETTY_NAME", "").strip('"'),
        "iperf3": attempt("iperf3", "--version"),
        "rustc": attempt("rustc", "--version"),
        "revision": revision(root),
        "load_at_start": os.getloadavg(),
    }
