"""How far apart CPUs 0 and 1 are: the time that a cache line takes from one to the other and back, by vswitch-bench.

The CPUs of a virtual machine have a cache in common at one time and not at another, and a line then takes several times as long.
What is handed from a guest on one CPU to a switch on the other is worth comparing only while that stays the same.
"""

import json

from .system import run

FACTOR = 2
"""More than this apart is another place for the CPUs."""


class Line:
    """Its times before and after each sample of a run."""

    def __init__(self, tool):
        self.tool = tool
        self.least = None

    def measure(self):
        """Nanoseconds, now."""
        return json.loads(run(self.tool, "line"))["line_ns"]

    def moved(self, before, after):
        """Whether a sample between these is worth little: the CPUs moved meanwhile, or were nearer for another sample."""
        self.least = min(before, after, self.least or before)
        return max(before, after) > FACTOR * self.least
