"""results.json with every raw sample, and the table for people."""

import json
import os

from .load import QUIET_CPUS
from .metrics import FIELDS
from .plot import svg
from .stats import summarise

# Of the core set, and of results from before there were others.
REFERENCE = "bridge"


def reference(results):
    """The contender that the others are compared with."""
    return results.get("reference", REFERENCE)


COLUMNS = {
    "tcp1_gbps": "TCP 1, Gbit/s",
    "tcp4_gbps": "TCP 4, Gbit/s",
    "rtt_p50_us": "p50, µs",
    "rtt_p99_us": "p99, µs",
    "small_mpps": "60 B, M/s",
    "tcp1_cpu_s_per_gb": "CPU 1, s/GB",
    "tcp4_cpu_s_per_gb": "CPU 4, s/GB",
    "gso_guests_gbps": "guests, Gbit/s",
    "gso_out_gbps": "out, Gbit/s",
    "gso_in_gbps": "in, Gbit/s",
    "mtu_guests_gbps": "MTU: guests, Gbit/s",
    "mtu_out_gbps": "MTU: out, Gbit/s",
    "mtu_in_gbps": "MTU: in, Gbit/s",
    "frames64_mpps": "64 B, M/s",
    "frames1500_mpps": "1500 B, M/s",
    "frames64_line_ns": "64 B: line, ns",
    "frames1500_line_ns": "1500 B: line, ns",
    "idle_cpu_percent": "idle, %",
    "idle_rss_mib": "idle, MiB",
}
"""Short names of the fields, for the overview."""


def overview(results):
    """A row a contender, a column a field: the median, and its ratio to the reference. Aligned, and Markdown."""
    summary = summarise(results["samples"], results["contenders"], FIELDS, reference(results))
    rows = [["contender", *(COLUMNS[field] for field in summary)]]
    for contender in results["contenders"]:
        cells = [contender]
        for field, column in summary.items():
            row = column.get(contender)
            ratio = f" ({row['ratio']['median']:.2f}×)" if row and row["ratio"] else ""
            cells.append(f"{row['value']['median']:.{FIELDS[field][2]}f}{ratio}" if row else "–")
        rows.append(cells)
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def disturbed(results):
    """A sentence when other processes were busy during samples, or the CPUs moved, else nothing."""
    samples = results["samples"]
    busy = sum(sample.get("foreign_cpus", 0) > QUIET_CPUS for sample in samples)
    moved = sum(sample.get("moved", False) for sample in samples)
    what = [f"other processes used more than {QUIET_CPUS} CPUs during {busy}"] if busy else []
    what += [f"the CPUs were not where they were for others during {moved}"] if moved else []
    text = f"{' and '.join(what)} of {len(samples)} samples: these numbers are worth little."
    return text[0].upper() + text[1:] if what else ""


def table(results):
    """Markdown: the overview, then a section a field with a row a contender."""
    machine = results["machine"]
    lines = [
        f"# Measured on {results['started']}",
        "",
        f"{machine['cpu']}, {machine['cpus']} CPUs"
        + (f" ({machine['virtual']})" if machine.get("virtual") not in (None, "none") else "")
        + f"; Linux {machine['kernel']}; {machine['system']}; revision {machine['revision']}.",
        "",
        f"{results['rounds']} rounds, {results['seconds']} s a sample, contenders in turn. Values are medians over the rounds "
        f"(min – max); ratios to `{reference(results)}` are taken within each round, then their median (min – max). Whole machine's "
        "busy time, less other processes', for the CPU cost. Nothing here is asserted.",
        *(["", f"**{note}**"] if (note := disturbed(results)) else []),
        "",
        overview(results),
    ]
    summary = summarise(results["samples"], results["contenders"], FIELDS, reference(results))
    for field, rows in summary.items():
        title, unit, decimals, better = FIELDS[field]
        lines += ["", f"## {title} ({unit}, {better} is better)", ""]
        lines += [f"| contender | {unit} | min – max | × {reference(results)} | min – max | n |", "|---|---:|---:|---:|---:|---:|"]
        for contender, row in rows.items():
            value, ratio = row["value"], row["ratio"]
            cells = [contender, f"**{value['median']:.{decimals}f}**"]
            cells.append(f"{value['min']:.{decimals}f} – {value['max']:.{decimals}f}")
            cells += [f"**{ratio['median']:.2f}**", f"{ratio['min']:.2f} – {ratio['max']:.2f}"] if ratio else ["", ""]
            lines.append("| " + " | ".join([*cells, str(value["n"])]) + " |")
    lines += ["", "## Contenders", ""]
    lines += [f"- `{name}`: {about['title']}. {about['version']}" for name, about in results["contenders"].items()]
    lines += [f"- `{name}` was left out: {why}" for name, why in results["missing"].items()]
    errors = [sample for sample in results["samples"] if "error" in sample]
    if errors:
        lines += ["", "## Samples that failed", ""]
        lines += [f"- round {s['round']}, {s['contender']}, {s['metric']}: {s['error']}" for s in errors]
    return "\n".join(lines) + "\n"


def write(results, folder):
    """Writes results.json, table.md and plot.svg; safe to call after every round."""
    os.makedirs(folder, exist_ok=True)
    summary = summarise(results["samples"], results["contenders"], FIELDS, reference(results))
    files = {
        "results.json": json.dumps({**results, "summary": summary}, indent=1, ensure_ascii=False) + "\n",
        "table.md": table(results),
        "plot.svg": svg(results, FIELDS, reference(results)),
    }
    for name, text in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)
