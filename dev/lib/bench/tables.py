"""Tables of the report, and the figures in them as texts."""

import statistics

from results import values


def table(titles, rows, texts=1):
    """A Markdown table. The first `texts` columns are texts, the others are numbers."""
    yield f"| {' | '.join(titles)} |"
    yield f"| {' | '.join(['---'] * texts + ['---:'] * (len(titles) - texts))} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def chart(name, what):
    yield f"![{what}](benchmarks/{name}.svg)\n"


def spread(runs, figure="orders_per_s"):
    """The median, with the lowest and the highest value in brackets if there are several."""
    found = values(runs, figure)
    if not found:
        return "–"
    text = rounded(statistics.median(found))
    return text if len(found) == 1 else f"{text} ({rounded(min(found))}–{rounded(max(found))})"


def rounded(value):
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def times(found, digits=1):
    return f"{statistics.median(found):.{digits}f}" if found else "–"


def counts(runs, figure="orders"):
    """The different values of a figure in these runs: "10,000 or 40,000"."""
    return " or ".join(f"{count:,}" for count in sorted(set(values(runs, figure))))
