"""Processes and network namespaces of our own, and the promise that they go.

Everything made is registered with an ExitStack at once, so it is undone in reverse order whatever happens: the end
of a sample, an error, ^C or SIGTERM. Servers run in sessions of their own (^C at a terminal reaches only us, and we
end them by pid) and with a parent-death signal, so that they do not survive even our SIGKILL.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time


class Failed(Exception):
    """Something that a measurement needs did not work; the text says what, in one line if possible."""


def run(*argv, netns=None, timeout=60, env=None):
    """Runs a command to its end and returns its stdout. A failure carries its stderr."""
    argv = [str(word) for word in within(netns, argv)]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, env=env)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(argv)}: no end after {timeout} s") from None
    except OSError as error:
        raise Failed(f"{argv[0]}: {error.strerror}") from None
    if done.returncode != 0:
        raise Failed(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip() or f'exit {done.returncode}'}")
    return done.stdout


def target_folder(root, env=None):
    """Where cargo puts what it builds in the repository at `root`: CARGO_TARGET_DIR, build.target-dir, or neither."""
    asked = ["cargo", "metadata", "--no-deps", "--format-version", "1"]
    try:
        said = subprocess.run(asked, cwd=root, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        return json.loads(said.stdout)["target_directory"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return os.path.join(root, (env or os.environ).get("CARGO_TARGET_DIR", "target"))


def within(netns, argv):
    """The same command inside a namespace. /sys stays the host's: nothing here reads it."""
    return ["nsenter", f"--net=/run/netns/{netns}", "--", *argv] if netns else list(argv)


class Server:
    """A process that runs until the stack unwinds. Its output goes to a file, quoted when it dies early.

    Its stdin is a pipe that only `tell` writes to: vde_switch takes the end of its stdin for the end of its work.
    """

    def __init__(self, stack, name, *argv, netns=None, directory, env=None):
        self.name = name
        self.log = os.path.join(directory, f"{name}.log")
        argv = within(netns, ["setpriv", "--pdeathsig", "TERM", *map(str, argv)])
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=env
            )
        self.pid = self.process.pid
        stack.callback(self.stop)

    def stop(self):
        """Ends it: politely, then not."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        # What it never read is of no use to anybody.
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def tell(self, line):
        """Writes a line to its stdin."""
        try:
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()
        except OSError as error:
            raise Failed(f"{self.name} does not take {line!r} ({error.strerror}): {self.tail()}") from None

    def wait_until(self, ready, what, timeout=15):
        """Polls until `ready()` holds."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode} before {what}: {self.tail()}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: no {what} after {timeout} s: {self.tail()}")
            time.sleep(0.02)

    def wait_listening(self, port):
        """Waits for a TCP listener on `port` in the server's namespace."""
        self.wait_until(lambda: listening(self.pid, port), f"listener on port {port}")

    def result(self, timeout):
        """Waits for its end and returns its output as JSON."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name}: no end after {timeout} s") from None
        if code != 0:
            raise Failed(f"{self.name} ended with {code}: {self.tail()}")
        with open(self.log, encoding="utf-8") as log:
            return json.load(log)

    def tail(self):
        """The last lines it wrote."""
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return " | ".join(log.read().strip().splitlines()[-3:]) or "it wrote nothing"

    def cpu_seconds(self):
        """CPU time it has used, user and system, all threads."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self):
        """Its resident memory."""
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def listening(pid, port):
    """Whether the namespace of `pid` has a TCP listener (state 0A) on `port`."""
    wanted = f":{port:04X}"
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{table}", encoding="ascii") as lines:
            for line in lines:
                words = line.split()
                if len(words) > 3 and words[1].endswith(wanted) and words[3] == "0A":
                    return True
    return False


def netns(stack, name):
    """A namespace with lo up, and without IPv6, whose chatter would be counted, and without bridge netfilter."""
    run("ip", "netns", "add", name)
    stack.callback(quietly, "ip", "netns", "del", name)
    run("ip", "link", "set", "lo", "up", netns=name)
    for key in ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"):
        quietly("sysctl", "-qw", key, netns=name)
    return name


def veth(end_a, netns_a, end_b, netns_b):
    """A pair, one end in each namespace, both up; it goes with either namespace."""
    run("ip", "link", "add", end_a, "netns", netns_a, "type", "veth", "peer", "name", end_b, "netns", netns_b)
    run("ip", "link", "set", end_a, "up", netns=netns_a)
    run("ip", "link", "set", end_b, "up", netns=netns_b)


def mac_of(dev, namespace):
    """The address of an interface."""
    return json.loads(run("ip", "-j", "link", "show", "dev", dev, netns=namespace))[0]["address"]


def quietly(*argv, **options):
    """Runs a command whose failure does not matter: undoing, or a setting the kernel may lack."""
    with contextlib.suppress(Failed):
        run(*argv, **options)


def directory(stack):
    """A private temporary directory that goes with the stack."""
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="vswitch-bench-"))


@contextlib.contextmanager
def undoing():
    """An ExitStack whose unwinding a second ^C does not cut short."""
    stack = contextlib.ExitStack()
    try:
        yield stack
    finally:
        held = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            stack.close()
        finally:
            for number, handler in held.items():
                signal.signal(number, handler)


def exit_on_sigterm():
    """Makes SIGTERM and SIGHUP unwind like ^C does."""

    def leave(number, _frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
