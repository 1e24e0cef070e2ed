"""Who used the CPUs while we measured: everybody, and everybody else.

Kernel switching runs in softirqs that belong to no process, so the cost of a contender can only be had from the whole
machine's busy time; on a machine that is shared, what other processes used has to come off. It is summed from /proc:
own time and reaped children's time of every process that is neither ours (a descendant of the bench) nor a kernel
thread. A process that ends hands its time to the parent that reaps it, so the sum does not miss a compiler that came
and went; it does miss those reaped by init, and what the kernel did on others' behalf in softirqs.
"""

import os
import time

HERTZ = os.sysconf("SC_CLK_TCK")
KERNEL_THREAD = 0x00200000  # PF_KTHREAD

QUIET_CPUS = 0.1
"""More than this many CPUs' worth of other processes disturbs a measurement."""


def parse(stat):
    """(parent, whether a kernel thread, ticks of its own and its reaped children) from a /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]), bool(int(fields[6]) & KERNEL_THREAD), sum(map(int, fields[11:15]))


def foreign_ticks(processes, own):
    """The sum over {pid: parse()} of all that do not descend from `own`."""

    def ours(pid):
        for _ in range(len(processes)):
            if pid == own:
                return True
            if pid not in processes:
                return False
            pid = processes[pid][0]
        return False

    return sum(ticks for pid, (_, kernel, ticks) in processes.items() if not kernel and not ours(pid))


def processes():
    """{pid: parse()} of what runs now."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
                    found[int(name)] = parse(stat.read())
            except OSError:
                pass  # it has ended meanwhile
    return found


class Load:
    """CPU use from its creation to `end()`."""

    def __init__(self):
        self.before, self.start = self.read(), time.monotonic()

    @staticmethod
    def read():
        """(busy, stolen, foreign) seconds so far."""
        foreign = foreign_ticks(processes(), os.getpid())
        with open("/proc/stat", encoding="ascii") as stat:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
        return (user + nice + system + irq + softirq) / HERTZ, steal / HERTZ, foreign / HERTZ

    def end(self):
        """Sets elapsed, ours_s (busy less foreign), stolen_cpus and foreign_cpus."""
        busy, stolen, foreign = (now - then for now, then in zip(self.read(), self.before))
        self.elapsed = time.monotonic() - self.start
        self.ours_s = max(busy - foreign, 0.0)
        self.stolen_cpus = stolen / self.elapsed
        self.foreign_cpus = max(foreign, 0.0) / self.elapsed
        return self


def wait_for_quiet(patience):
    """Waits until other processes are quiet for a third of a second, `patience` seconds at most."""
    deadline = time.monotonic() + patience
    while True:
        load = Load()
        time.sleep(0.3)
        if load.end().foreign_cpus <= QUIET_CPUS or time.monotonic() > deadline:
            return
