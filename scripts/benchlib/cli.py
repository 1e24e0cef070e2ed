"""The command line of scripts/bench, and the rounds."""

import argparse
import json
import os
import platform
import shlex
import sys
import time

from . import machine, report
from .contenders import Link, all_contenders
from .guests import attachments
from .load import QUIET_CPUS, wait_for_quiet
from .metrics import METRICS, Setting, applies, measure
from .overlays import overlays
from .system import Failed, exit_on_sigterm, target_folder, undoing
from .vhost import front_ends

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ALL_METRICS = [*METRICS, "idle"]
SETS = {"core": all_contenders, "vxlan": overlays, "vhost": front_ends, "vm": attachments}


def arguments(argv):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures vswitch beside the Linux bridge, Open vSwitch and VDE, in turn, on this machine.",
    )
    parser.add_argument("set", nargs="?", choices=list(SETS), default="core", help="what to measure: switches on one host (core), VXLAN between two (vxlan), vhost-user ports under DPDK's testpmd (vhost), or guests under QEMU (vm)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="samples of everything (default 5)")
    parser.add_argument("--seconds", type=int, default=3, metavar="S", help="length of a sample (default 3)")
    parser.add_argument("--only", action="append", metavar="NAME[,NAME]", help="only these contenders; `vswitch` is tap and packet")
    parser.add_argument("--metrics", metavar="NAME[,NAME]", help=f"only these of {','.join(ALL_METRICS)}")
    parser.add_argument("--out", metavar="DIR", help="where results go (default results/DATE-HOST)")
    parser.add_argument("--append", action="store_true", help="add rounds to the results that are in --out already")
    parser.add_argument("--bin", metavar="DIR", help="folder of vswitchd and vswitchctl (default: where cargo puts them)")
    parser.add_argument("--also", action="append", default=[], metavar="LABEL=DIR", help="another build of ours, to compare in the same run")
    parser.add_argument("--vswitchd-args", default="", metavar="ARGS", help="more arguments for vswitchd")
    parser.add_argument("--patience", type=float, default=20, metavar="S", help="how long to wait for other processes to be quiet before each sample (default 20)")
    parser.add_argument("--tries", type=int, default=3, metavar="N", help="how often a sample is taken before a disturbed one is kept (default 3)")
    parser.add_argument("--list", action="store_true", help="list contenders and whether they can run, then exit")
    options = parser.parse_args(argv)
    options.bin = options.bin or os.path.join(target_folder(ROOT), "release")
    if min(options.rounds, options.seconds, options.tries) < 1:
        parser.error("--rounds, --seconds and --tries are at least 1")
    if options.append and not options.out:
        parser.error("--append needs --out")
    if any("=" not in pair for pair in options.also):
        parser.error("--also takes LABEL=DIR")
    options.metrics = words(options.metrics) or ALL_METRICS
    unknown = set(options.metrics) - set(ALL_METRICS)
    if unknown:
        parser.error(f"no metric {', '.join(sorted(unknown))}; there are {', '.join(ALL_METRICS)}")
    options.only = [name for chunk in options.only or [] for name in words(chunk)]
    return options, parser


def words(text):
    """The parts of a comma-separated list."""
    return [part for part in (text or "").split(",") if part]


def choose(options, parser):
    """(contenders that can run, {name: why} of those that cannot)."""
    also = dict(pair.split("=", 1) for pair in options.also)
    everyone = SETS[options.set](options.bin, also, shlex.split(options.vswitchd_args))
    options.reference = everyone[0].name

    def asked(contender, name):
        return contender.name == name or contender.default and contender.name.split("-")[0] == name

    for name in options.only:
        if not any(asked(contender, name) for contender in everyone):
            parser.error(f"no contender {name}; there are {', '.join(c.name for c in everyone)}")
    unasked = [c for c in everyone if c.default or options.list]
    wanted = [c for c in everyone if any(asked(c, name) for name in options.only)] if options.only else unasked
    missing = {c.name: why for c in wanted if (why := c.missing())}
    return [c for c in wanted if c.name not in missing], missing


def start(options, contenders, missing):
    """New results, or those to append to."""
    path = os.path.join(options.out, "results.json")
    if options.append and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
        if results["seconds"] != options.seconds:
            raise Failed(f"{path} has samples of {results['seconds']} s; give --seconds {results['seconds']}")
    else:
        results = {"started": time.strftime("%Y-%m-%d %H:%M:%S %z"), "machine": machine.describe(ROOT), "rounds": 0}
        results |= {"reference": options.reference, "seconds": options.seconds, "contenders": {}, "missing": {}, "samples": []}
    for contender in contenders:
        results["contenders"].setdefault(contender.name, {"title": contender.title, "version": contender.version()})
    results["missing"].update(missing)
    return results


def sample(number, metric, contender, setting):
    """Measures once; an error is a result too."""
    record = {"round": number, "contender": contender.name, "metric": metric}
    try:
        # Before the contender takes its CPUs, and when it has left them.
        before = setting.line.measure() if contender.hands_over else None
        with undoing() as stack:
            record["values"], record["foreign_cpus"] = measure(metric, contender, Link(stack), setting)
        if contender.hands_over:
            after = setting.line.measure()
            record["values"][f"{metric}_line_ns"] = max(before, after)
            record["moved"] = setting.line.moved(before, after)
    except Failed as error:
        record["error"] = str(error)
    return record


def undisturbed(number, metric, contender, setting, options):
    """A sample taken while other processes are quiet and the CPUs stay where they are, else taken again, then kept as it is."""
    for _ in range(options.tries):
        wait_for_quiet(options.patience)
        record = sample(number, metric, contender, setting)
        say(record)
        if record.get("foreign_cpus", 0) <= QUIET_CPUS and not record.get("moved"):
            break
    return record


def say(record):
    """One line of progress."""
    if "error" in record:
        text = f"failed: {record['error']}"
    else:
        text = "  ".join(
            f"{key.partition('_')[2]} {value:.4g}" for key, value in record["values"].items() if isinstance(value, (int, float))
        )
    if record.get("foreign_cpus", 0) > QUIET_CPUS:
        text += f"  (disturbed: other processes used {record['foreign_cpus']:.2f} CPUs)"
    if record.get("moved"):
        text += "  (the CPUs are not where they were)"
    print(f"  round {record['round']:2}  {record['metric']:11}{record['contender']:16} {text}", flush=True)


def rounds(options, contenders, results, setting):
    """Every round: each metric in turn, and for it each contender, from a different one every time."""
    first = results["rounds"] + 1
    for number in range(first, first + options.rounds):
        for metric in options.metrics:
            turn = (number - 1) % len(contenders)
            for contender in contenders[turn:] + contenders[:turn]:
                if applies(metric, contender):
                    record = undisturbed(number, metric, contender, setting, options)
                    results["samples"].append(record)
        results["rounds"] = number
        report.write(results, options.out)


def main(argv=None):
    """Runs the bench; 0 when every sample was taken."""
    options, parser = arguments(argv)
    contenders, missing = choose(options, parser)
    if options.list:
        for contender in contenders:
            note = "" if contender.default else f" (only with --only {contender.name})"
            print(f"{contender.name:16} {contender.title}. {contender.version()}{note}")
        for name, why in missing.items():
            print(f"{name:16} cannot run: {why}")
        return 0
    if not contenders:
        parser.error("nothing to measure: " + "; ".join(f"{name}: {why}" for name, why in missing.items()))
    for name, why in missing.items():
        print(f"left out: {name}: {why}", file=sys.stderr)

    exit_on_sigterm()
    # The measuring tools are this tree's, whatever folder the switch comes from.
    setting = Setting(options.seconds, os.path.join(target_folder(ROOT), "release/vswitch-bench"))
    options.out = options.out or os.path.join(ROOT, "results", time.strftime("%Y-%m-%d-%H%M%S-") + platform.node())
    try:
        results = start(options, contenders, missing)
        print(f"results go to {options.out}", flush=True)
        rounds(options, contenders, results, setting)
    except Failed as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nscripts/bench: stopped; whole rounds are kept in the results", file=sys.stderr)
        return 130
    print(f"\nMedians of {results['rounds']} rounds; in brackets the ratio to {report.reference(results)}, per round, then its median:\n")
    print(report.overview(results))
    print(f"\nSpreads, a plot and every raw sample: {options.out}")
    if (disturbed := report.disturbed(results)):
        print(f"\n{disturbed}")
    failed = sum("error" in record for record in results["samples"])
    if failed:
        print(f"scripts/bench: {failed} samples failed", file=sys.stderr)
    return 1 if failed else 0
