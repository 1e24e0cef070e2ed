"""Tests of what the bench computes: `python3 -m benchlib.selftest`. Ends with a line as Rust's tests do."""

import contextlib
import io
import os
import re
import sys
import tempfile
import types
import unittest
import unittest.mock
import xml.etree.ElementTree

from . import cli, contenders, guests, load, metrics, report, stats, system, vhost
from .line import Line
from .system import Failed, Server, directory, run, undoing


def sample(number, contender, **values):
    """A sample as measure() records it."""
    return {"round": number, "contender": contender, "metric": "m", "values": values}


class Stats(unittest.TestCase):
    samples = [
        sample(1, "bridge", x=10.0), sample(1, "ours", x=5.0),
        sample(2, "bridge", x=20.0), sample(2, "ours", x=20.0),
        sample(3, "bridge", x=30.0), {"round": 3, "contender": "ours", "metric": "m", "error": "no"},
        sample(4, "ours", x=7.0),
    ]  # fmt: skip

    def test_ratios_pair_the_samples_of_a_round(self):
        ratio = stats.ratios(self.samples, "ours", "bridge", "x")
        self.assertEqual(ratio, {"median": 0.75, "min": 0.5, "max": 1.0, "n": 2})

    def test_no_common_round_is_no_ratio(self):
        self.assertIsNone(stats.ratios(self.samples, "ours", "other", "x"))

    def test_the_summary_has_what_was_measured(self):
        summary = stats.summarise(self.samples, ["bridge", "ours", "other"], ["x", "y"], "bridge")
        self.assertEqual(list(summary), ["x"])
        self.assertEqual(list(summary["x"]), ["bridge", "ours"])
        self.assertEqual(summary["x"]["ours"]["value"], {"median": 7.0, "min": 5.0, "max": 20.0, "n": 3})
        self.assertIsNone(summary["x"]["bridge"]["ratio"])


class Folders(unittest.TestCase):
    scripts = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def both(self, root, **more):
        """What Python and what the shell scripts take for cargo's target folder."""
        env = {name: value for name, value in os.environ.items() if name not in ("CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR")} | more
        asked = [". \"$1/lib/common.sh\" && target_folder \"$2\"", "sh", self.scripts, root]
        return system.target_folder(root, env), run("sh", "-euc", *asked, env=env).strip()

    def test_programs_are_where_cargo_puts_them(self):
        with tempfile.TemporaryDirectory() as root:
            os.makedirs(os.path.join(root, "src"))
            for name, text in (("Cargo.toml", '[package]\nname = "p"\n[workspace]\n'), ("src/lib.rs", "")):
                with open(os.path.join(root, name), "w") as file:
                    file.write(text)
            self.assertEqual(self.both(root), (f"{root}/target",) * 2)
            self.assertEqual(self.both(root, CARGO_TARGET_DIR="/somewhere/else"), ("/somewhere/else",) * 2)
            os.makedirs(os.path.join(root, ".cargo"))
            with open(os.path.join(root, ".cargo/config.toml"), "w") as file:
                file.write('[build]\ntarget-dir = "built here"\n')
            self.assertEqual(self.both(root), (f"{root}/built here",) * 2)

    def test_no_script_knows_better(self):
        guess = re.compile(r"(?<!\$)target/(release|debug|guest|libvirt|loom|test-logs)")
        for folder, _, names in os.walk(self.scripts):
            for name in names:
                path = os.path.join(folder, name)
                if path != os.path.abspath(__file__) and not name.endswith(".pyc"):
                    with open(path) as file:
                        self.assertIsNone(guess.search(file.read()), path)


class Iperf(unittest.TestCase):
    text = {
        "intervals": [{"sum": {"bytes": 100, "omitted": True}}, {"sum": {"bytes": 300, "omitted": False}}],
        "end": {"sum_sent": {"retransmits": 2}, "sum_received": {"bits_per_second": 8e9}},
    }

    def test_bytes_include_the_omitted_start(self):
        self.assertEqual(metrics.parse_iperf(self.text), (8e9, 400, 2))

    def test_its_errors_are_ours(self):
        with self.assertRaisesRegex(Failed, "unable to connect"):
            metrics.parse_iperf({"error": "unable to connect"})


class Load(unittest.TestCase):
    def test_only_other_processes_are_foreign(self):
        table = {1: (0, False, 1), 2: (0, True, 10), 5: (1, False, 100), 6: (5, False, 1000), 7: (6, False, 10000)}
        self.assertEqual(load.foreign_ticks(table, own=6), 101)
        self.assertEqual(load.foreign_ticks(table, own=1), 0)

    def test_a_name_with_spaces_and_brackets_is_read(self):
        stat = "7 (a) b (c) S 3 7 7 0 -1 2097152 0 0 0 0 11 12 13 14 20 0 1 0 5 0 0"
        self.assertEqual(load.parse(stat), (3, True, 50))

    def test_our_own_work_is_ours(self):
        window = load.Load()
        run("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
        window.end()
        self.assertGreater(window.ours_s, 0.05)


class Lines(unittest.TestCase):
    def test_a_sample_counts_while_the_cpus_stay(self):
        line = Line("/nowhere")
        self.assertFalse(line.moved(330, 350))
        self.assertTrue(line.moved(60, 330))
        self.assertTrue(line.moved(330, 330))
        self.assertFalse(line.moved(120, 61))

    def test_it_is_taken_again_when_they_move_and_told_of(self):
        times = iter((60, 330, 61, 62))
        setting = metrics.Setting(1, "/nowhere")
        setting.line.measure = lambda: next(times)
        options = types.SimpleNamespace(tries=3, patience=0)
        [contender] = vhost.front_ends("/nowhere", {}, [])[1:]
        with unittest.mock.patch.object(cli, "measure", lambda *_: ({"frames64_mpps": 1.0}, 0.0)), \
                unittest.mock.patch.object(cli, "Link"), contextlib.redirect_stdout(io.StringIO()) as said:
            record = cli.undisturbed(1, "frames64", contender, setting, options)
        self.assertEqual(record["values"], {"frames64_mpps": 1.0, "frames64_line_ns": 62})
        self.assertEqual(said.getvalue().count("not where they were"), 1)


class FramesThatGoRound(unittest.TestCase):
    text = "  Rx-pps:      1200000          Rx-bps:    614400000\n  Rx-pps:            0          Rx-bps:  0\n"

    def test_what_testpmd_receives_is_read(self):
        self.assertEqual(vhost.rates(self.text), [1200000, 0])

    def test_frames_lost_at_the_start_are_seen(self):
        self.assertTrue(vhost.balanced([10, 12]))
        for received in ([0, 0], [10, 0], [0, 10], [4, 10]):
            self.assertFalse(vhost.balanced(received))


class Report(unittest.TestCase):
    results = {
        "started": "now", "rounds": 2, "seconds": 1, "missing": {"vde": "no vde_switch"},
        "machine": {"cpu": "C & <D>", "cpus": 2, "kernel": "6", "system": "S", "revision": "r", "virtual": None},
        "contenders": {name: {"title": name, "version": "1"} for name in ("bridge", "vswitch-tap")},
        "samples": [
            sample(1, "bridge", tcp1_gbps=10.0), sample(1, "vswitch-tap", tcp1_gbps=8.0),
            sample(2, "bridge", tcp1_gbps=20.0), sample(2, "vswitch-tap", tcp1_gbps=18.0),
            {"round": 2, "contender": "bridge", "metric": "rtt", "error": "lost"},
        ],
    }  # fmt: skip

    def test_the_table_has_values_ratios_and_failures(self):
        text = report.table(self.results)
        self.assertIn("| vswitch-tap | **13.00** | 8.00 – 18.00 | **0.85** | 0.80 – 0.90 | 2 |", text)
        self.assertIn("`vde` was left out: no vde_switch", text)
        self.assertIn("round 2, bridge, rtt: lost", text)

    def test_disturbed_samples_are_told_of(self):
        self.assertNotIn("Other processes", report.table(self.results))
        busy = {**self.results, "samples": [{**sample(1, "bridge", tcp1_gbps=1.0), "foreign_cpus": 0.5}]}
        self.assertIn("Other processes used more than 0.1 CPUs during 1 of 1 samples", report.table(busy))
        moved = {**self.results, "samples": [{**sample(1, "bridge", tcp1_gbps=1.0), "moved": True}]}
        self.assertIn("The CPUs were not where they were for others during 1 of 1 samples", report.table(moved))

    def test_the_overview_is_a_matrix(self):
        lines = report.overview(self.results).splitlines()
        self.assertEqual(lines[0], "| contender   | TCP 1, Gbit/s |")
        self.assertEqual(lines[3], "| vswitch-tap | 13.00 (0.85×) |")
        self.assertEqual(set(report.COLUMNS), set(metrics.FIELDS))

    def test_the_plot_is_well_formed(self):
        text = report.svg(self.results, metrics.FIELDS, report.REFERENCE)
        marks = [element.tag.rpartition("}")[2] for element in xml.etree.ElementTree.fromstring(text).iter()]
        self.assertEqual(marks.count("rect"), 3)
        self.assertEqual(marks.count("circle"), 4)


class Arguments(unittest.TestCase):
    def names(self, *argv):
        """The contenders an invocation asks for, whether they can run here or not."""
        options, parser = cli.arguments(argv)
        contenders, missing = cli.choose(options, parser)
        return {contender.name for contender in contenders} | set(missing)

    def test_a_prefix_names_all_of_ours(self):
        self.assertEqual(self.names("--only", "vswitch"), {"vswitch-tap", "vswitch-packet"})
        self.assertEqual(self.names("--only", "bridge,veth"), {"bridge", "veth"})
        self.assertIn("vswitch-tap@old", self.names("--also", "old=/nowhere"))

    def test_plain_taps_run_only_when_asked_for(self):
        self.assertNotIn("vswitch-plain", self.names())
        self.assertEqual(self.names("--only", "vswitch-plain,bridge"), {"vswitch-plain", "bridge"})
        self.assertIn("vswitch-plain", self.names("--list"))

    def test_guests_are_measured_for_what_is_theirs(self):
        self.assertEqual(self.names("vm"), {"vm-bridge", "vm-tap", "vm-vhost-user"})
        self.assertIn("vm-vhost-user@old", self.names("vm", "--also", "old=/nowhere"))
        for contender in guests.attachments("/nowhere", {}, []):
            self.assertEqual([name for name in cli.ALL_METRICS if metrics.applies(name, contender)], ["gso", "mtu"])
        self.assertFalse(any(metrics.applies("gso", contender) for contender in contenders.all_contenders("/nowhere", {}, [])))

    def test_vhost_user_is_measured_beside_open_vswitch(self):
        self.assertEqual(self.names("vhost"), {"ovs-dpdk", "vswitch-vhost"})
        self.assertIn("vswitch-vhost@old", self.names("vhost", "--also", "old=/nowhere"))

    def test_every_field_belongs_to_a_metric(self):
        for field in metrics.FIELDS:
            self.assertIn(field.split("_")[0], cli.ALL_METRICS)


class Console(unittest.TestCase):
    def test_what_a_guest_says_is_read_up_to_its_mark(self):
        with undoing() as stack:
            folder = directory(stack)
            guest = object.__new__(guests.Guest)
            # The second line loses its first character on the way, once.
            script = (
                "echo '@@guest is ready'; count=0; while read -r length line; do count=$((count + 1));"
                ' [ $count -ne 2 ] || line=${line#?}; if [ "${#line}" != "$length" ]; then echo "@@ended garbled";'
                ' else eval "$line"; echo "@@ended $?"; fi; done'
            )
            guest.server, guest.seen = Server(stack, "console", "sh", "-c", script, directory=folder), 0
            guest.booted(5)
            self.assertEqual(guest.run("echo one; echo two"), "one\ntwo\n")
            with self.assertRaisesRegex(Failed, "console: echo no; false: 1: no"):
                guest.run("echo no; false")
            self.assertEqual(guest.run("true"), "")


class Processes(unittest.TestCase):
    def test_what_was_started_ends_with_the_stack(self):
        with undoing() as stack:
            folder = directory(stack)
            server = Server(stack, "sleeper", "sleep", "60", directory=folder)
            os.kill(server.pid, 0)
            with self.assertRaisesRegex(Failed, "no end after"):
                server.result(0.01)
        with self.assertRaises(ProcessLookupError):
            os.kill(server.pid, 0)
        self.assertFalse(os.path.exists(folder))

    def test_a_server_that_dies_is_reported_with_its_last_words(self):
        with undoing() as stack:
            server = Server(stack, "dying", "sh", "-c", "echo last words; exit 3", directory=directory(stack))
            with self.assertRaisesRegex(Failed, "ended with 3 before ready: last words"):
                server.wait_until(lambda: False, "ready", timeout=5)

    def test_a_line_that_nobody_reads_is_a_failure_and_no_trouble_at_the_end(self):
        with undoing() as stack:
            server = Server(stack, "deaf", "sh", "-c", "echo last words; exit 3", directory=directory(stack))
            server.process.wait()
            with self.assertRaisesRegex(Failed, "deaf does not take 'on' .*: last words"):
                server.tell("on")

    def test_a_failing_command_says_why(self):
        with self.assertRaisesRegex(Failed, "sh -c .*: why"):
            run("sh", "-c", "echo why >&2; exit 1")
        with self.assertRaisesRegex(Failed, "no-such-program"):
            run("no-such-program")


def main():
    """Runs the tests; 0 when all passed."""
    tests = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(tests)
    failed, skipped = len(result.failures) + len(result.errors), len(result.skipped)
    word = "FAILED" if failed else "ok"
    print(f"test result: {word}. {result.testsRun - failed - skipped} passed; {failed} failed; {skipped} ignored;")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
