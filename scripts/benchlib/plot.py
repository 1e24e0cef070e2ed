"""The plot: one panel a field, a bar a contender (the median), a dot a sample, a line where the reference stands.

Written as SVG by hand: fifty lines against a plotting package of a hundred megabytes, and it reads in any browser.
"""

from html import escape

from .stats import by_round, spread

PANEL_WIDTH, LABEL_WIDTH, ROW, HEAD, GAP, COLUMNS = 560, 150, 24, 34, 18, 2
BAR_WIDTH = PANEL_WIDTH - LABEL_WIDTH - 90
OURS, OTHERS, DOT, LINE = "#2f6fab", "#b9c4cf", "#1b2733", "#c4453c"


def panel(results, field, about, reference, x, y):
    """One field's bars; returns SVG and the height used."""
    title, unit, decimals, better = about
    rows = {name: by_round(results["samples"], name, field) for name in results["contenders"]}
    rows = {name: list(values.values()) for name, values in rows.items() if values}
    if not rows:
        return "", 0
    scale = BAR_WIDTH / (max(max(values) for values in rows.values()) or 1)
    out = [f'<text x="{x}" y="{y + 16}" class="t">{escape(title)} <tspan class="u">{escape(unit)}, {better} is better</tspan></text>']
    left, bottom = x + LABEL_WIDTH, y + HEAD + ROW * len(rows)
    for number, (name, values) in enumerate(rows.items()):
        top, middle = y + HEAD + ROW * number, spread(values)["median"]
        colour = OURS if name.startswith("vswitch") else OTHERS
        out.append(f'<text x="{left - 8}" y="{top + 14}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<rect x="{left}" y="{top + 3}" width="{middle * scale:.1f}" height="{ROW - 9}" fill="{colour}"/>')
        out += [f'<circle cx="{left + value * scale:.1f}" cy="{top + 10.5}" r="2" fill="{DOT}"/>' for value in values]
        edge = left + max(values) * scale + 8
        out.append(f'<text x="{edge:.1f}" y="{top + 14}">{middle:.{decimals}f}</text>')
    if reference in rows:
        at = left + spread(rows[reference])["median"] * scale
        out.append(f'<path d="M{at:.1f} {y + HEAD - 3}V{bottom}" stroke="{LINE}" stroke-dasharray="3 3"/>')
    return "\n".join(out), bottom - y


def svg(results, fields, reference):
    """The whole picture."""
    body, tops = [], [46] * COLUMNS
    for field, about in fields.items():
        column = tops.index(min(tops))
        text, height = panel(results, field, about, reference, 16 + column * (PANEL_WIDTH + GAP), tops[column])
        if height:
            body.append(text)
            tops[column] += height + GAP
    width, height = 32 + COLUMNS * (PANEL_WIDTH + GAP) - GAP, max(tops)
    machine = results["machine"]
    head = f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, revision {machine['revision']}: " \
           f"medians of {results['rounds']} rounds, dots are samples, the line is {reference}"  # fmt: skip
    style = "text{font:12px sans-serif;fill:#1b2733}.t{font-weight:bold;font-size:13px}.u{font-weight:normal;fill:#5b6875}"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<style>{style}</style>", f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="16" y="24">{escape(head)}</text>', *body, "</svg>",
    ]) + "\n"  # fmt: skip
