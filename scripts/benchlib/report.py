"""results.json with every raw sample, and the table for people."""

import json
import os

from .metrics import FIELDS
from .plot import svg
from .stats import summarise

REFERENCE = "bridge"


def table(results):
    """Markdown: a row a contender, a section a field."""
    machine = results["machine"]
    lines = [
        f"# Measured on {results['started']}",
        "",
        f"{machine['cpu']}, {machine['cpus']} CPUs"
        + (f" ({machine['virtual']})" if machine.get("virtual") not in (None, "none") else "")
        + f"; Linux {machine['kernel']}; {machine['system']}; revision {machine['revision']}.",
        "",
        f"{results['rounds']} rounds, {results['seconds']} s a sample, contenders in turn. Values are medians over the rounds "
        f"(min – max); ratios to `{REFERENCE}` are taken within each round, then their median (min – max). Whole machine's "
        "busy time, less its idle load, for the CPU cost. Nothing here is asserted.",
    ]
    summary = summarise(results["samples"], results["contenders"], FIELDS, REFERENCE)
    for field, rows in summary.items():
        title, unit, decimals, better = FIELDS[field]
        lines += ["", f"## {title} ({unit}, {better} is better)", ""]
        lines += [f"| contender | {unit} | min – max | × {REFERENCE} | min – max | n |", "|---|---:|---:|---:|---:|---:|"]
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
    summary = summarise(results["samples"], results["contenders"], FIELDS, REFERENCE)
    files = {
        "results.json": json.dumps({**results, "summary": summary}, indent=1, ensure_ascii=False) + "\n",
        "table.md": table(results),
        "plot.svg": svg(results, FIELDS, REFERENCE),
    }
    for name, text in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)
