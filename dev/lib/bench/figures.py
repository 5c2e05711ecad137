"""Draws the charts of the report from the results."""

from charts import Line, bar_chart, line_chart
from results import median

# The names of the variants in the report.
NAMES = {
    "row": "row",
    "redlock": "redlock, three masters",
    "redlock-1": "redlock, one master",
}
COLOURS = {"row": 0, "redlock": 1}


def draw(results):
    """The SVG of each chart that has results, by the name of its file."""
    charts = {"drain": drain, "batch": batch, "workers": workers, "latency": latency}
    return {
        f"{name}.svg": chart(results) for name, chart in charts.items() if results.runs.get(name)
    }


def drain(results):
    """The bars of stocklock, and those of the peer if it was measured."""
    groups = results.labels("drain", "workload")
    cases = [(name, {"who": "stocklock", "variant": variant}) for variant, name in NAMES.items()]
    cases += [
        (f"peer, {variant}", {"who": "peer", "variant": variant})
        for variant in results.labels("drain", "variant", who="peer")
    ]
    series = [
        (
            name,
            [
                median(results.select("drain", workload=group, **labels), "orders_per_s")
                for group in groups
            ],
        )
        for name, labels in cases
    ]
    return bar_chart("A backlog drained", "workload", "orders/s", groups, series)


def batch(results):
    sizes = results.labels("batch", "batch_max", workload="Z")
    lines = [
        Line(
            variant,
            _medians(results, "batch", "batch_max", sizes, workload="Z", variant=variant),
            colour,
        )
        for variant, colour in COLOURS.items()
    ]
    return line_chart(
        "Throughput by batch size, workload Z",
        "most orders of a transaction",
        "orders/s",
        lines,
        sizes,
    )


def workers(results):
    counts = results.labels("workers", "workers")
    series = [
        (variant, [y for _, y in _medians(results, "workers", "workers", counts, variant=variant)])
        for variant in COLOURS
    ]
    title = "Throughput by number of workers, workload Z"
    return bar_chart(
        title, "worker processes", "orders/s", [str(count) for count in counts], series
    )


def latency(results):
    lines = []
    for variant, colour in COLOURS.items():
        rates = results.labels("latency", "rate", variant=variant)
        for figure, dashed in (("p50_ms", False), ("p99_ms", True)):
            points = _medians(results, "latency", "rate", rates, figure, variant=variant)
            lines.append(Line(f"{variant}, {figure[:3]}", sorted(points), colour, dashed))
    return line_chart(
        "From acceptance to the final status, workload Z",
        "orders/s that are placed, whatever the answers",
        "ms",
        lines,
        _rounded(results.labels("latency", "rate")),
        y_log=True,
    )


def _medians(results, section, label, places, figure="orders_per_s", **labels):
    return [
        (place, median(results.select(section, **{label: place}, **labels), figure))
        for place in places
    ]


def _rounded(rates):
    """1, 2 and 5 times powers of ten, from at most the lowest rate to at least the highest."""
    ticks = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    first = max((tick for tick in ticks if tick <= min(rates)), default=1)
    last = min(tick for tick in ticks if tick >= max(rates))
    return [tick for tick in ticks if first <= tick <= max(last, first * 2)]
