"""Medians, spreads and ratios of raw samples.

A sample is {"round": n, "contender": name, "metric": name, "values": {field: number}}, or has "error" for "values".
The ratio to the reference is taken within each round and its median reported: the quotient of two medians would
compare samples that may lie minutes, and a change of the machine's speed, apart.
"""

import statistics


def by_round(samples, contender, field):
    """{round: value} of one contender."""
    return {
        sample["round"]: sample["values"][field]
        for sample in samples
        if sample["contender"] == contender and field in sample.get("values", {})
    }


def spread(values):
    """{"median", "min", "max", "n"} of some numbers, or None of none."""
    values = list(values)
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def ratios(samples, contender, reference, field):
    """The spread of the per-round ratios, or None if no round has both."""
    ours, theirs = by_round(samples, contender, field), by_round(samples, reference, field)
    return spread(ours[number] / theirs[number] for number in sorted(ours) if theirs.get(number))


def summarise(samples, contenders, fields, reference):
    """{field: {contender: {"value": spread, "ratio": spread or None}}}; only what was measured."""
    table = {}
    for field in fields:
        for contender in contenders:
            value = spread(by_round(samples, contender, field).values())
            if value:
                ratio = None if contender == reference else ratios(samples, contender, reference, field)
                table.setdefault(field, {})[contender] = {"value": value, "ratio": ratio}
    return table
