"""Draws the panels of a dashboard as one SVG picture."""

import math
from xml.sax.saxutils import escape

COLUMN, UNIT = 50, 30
MARGIN, GAP = 12, 8
FONTS = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
COLOURS = ("#2f81f7", "#db6d28", "#2da44e", "#a371f7", "#bf3989", "#8b949e")
STATES = {"green": "#2da44e", "orange": "#bf8700", "red": "#cf222e"}
GREY, FRAME, TEXT = "#6e7781", "#d0d7de", "#24292f"


def value_text(value, unit, decimals=None):
    """A value as Grafana shows it, for the units that the dashboard has."""
    if value is None or math.isnan(value):
        return "no data"
    if unit == "percentunit":
        return f"{value * 100:.{decimals if decimals is not None else 1}f} %"
    if unit == "s" and 0 < value < 1:
        return f"{value * 1000:.3g} ms"
    suffix = {"s": " s", "ops": "/s", "reqps": "/s"}.get(unit, "")
    shown = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    return shown + suffix


def text(x, y, words, size=12, colour=TEXT, anchor="start", weight="normal"):
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
        f' font-weight="{weight}">{escape(words)}</text>'
    )


def box(x, y, width, height, fill="#ffffff", stroke=FRAME):
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="4"'
        f' fill="{fill}" stroke="{stroke}"/>'
    )


def state_colour(panel, value):
    found = "green"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or (value is not None and value >= step["value"]):
            found = step["color"]
    return STATES[found]


def ticks(most):
    """Round values from 0 to at least `most`."""
    if most <= 0:
        return [0, 1]
    magnitude = 10 ** math.floor(math.log10(most / 4))
    size = next(size * magnitude for size in (1, 2, 2.5, 5, 10) if size * magnitude * 4 >= most)
    return [size * count for count in range(math.ceil(most / size - 1e-9) + 1)]


def last_value(points):
    return next((value for _, value in reversed(points) if not math.isnan(value)), None)


def stat(panel, series, place):
    x, y, width, height = place
    defaults = panel["fieldConfig"]["defaults"]
    value = last_value(series[0].points) if series else None
    shown = value_text(value, defaults["unit"], defaults.get("decimals"))
    yield box(x, y, width, height, state_colour(panel, value), "none")
    yield text(x + 10, y + 22, panel["title"], 13, "#ffffff")
    yield text(x + width / 2, y + height / 2 + 22, shown, 30, "#ffffff", "middle", "600")


def graph(panel, series, place, begin, end):
    x, y, width, height = place
    yield box(x, y, width, height)
    yield text(x + 10, y + 20, panel["title"], 13, weight="600")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    left, right, top = x + 66, x + width - 14, y + 34
    bottom = y + height - 24 - 16 * legend_rows(series, width)
    values = [value for one in series for _, value in one.points if not math.isnan(value)]
    scale = ticks(max(values, default=0))

    def across(at):
        return left + (at - begin) / (end - begin) * (right - left)

    def up(value):
        return bottom - value / scale[-1] * (bottom - top)

    for tick in scale:
        yield f'<path d="M{left:.0f} {up(tick):.1f}H{right:.0f}" stroke="{FRAME}"/>'
        yield text(left - 6, up(tick) + 4, value_text(tick, unit), 10, GREY, "end")
    for minute in range(int((end - begin) // 60) + 1):
        at, anchor = begin + 60 * minute, "end" if begin + 60 * minute > end - 15 else "middle"
        yield text(across(at), bottom + 14, f"{minute} min", 10, GREY, anchor)
    for number, one in enumerate(series):
        yield line(one.points, across, up, COLOURS[number % len(COLOURS)])
    yield from legend(series, unit, x + 10, bottom + 32, width)


def line(points, across, up, colour):
    path, is_drawing = "", False
    for at, value in points:
        if math.isnan(value):
            is_drawing = False
            continue
        path += f"{'L' if is_drawing else 'M'}{across(at):.1f} {up(value):.1f}"
        is_drawing = True
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def legend_columns(width):
    return max(1, int(width // 190))


def legend_rows(series, width):
    return math.ceil(len(series) / legend_columns(width))


def legend(series, unit, x, y, width):
    columns = legend_columns(width)
    for number, one in enumerate(series):
        across, down = x + (number % columns) * 190, y + number // columns * 16
        colour = COLOURS[number % len(COLOURS)]
        yield f'<rect x="{across}" y="{down - 8:.0f}" width="12" height="4" fill="{colour}"/>'
        shown = value_text(last_value(one.points), unit)
        yield text(across + 18, down, f"{one.name}: {shown}", 11)


def picture(dashboard, series_of, begin, end):
    """The SVG of a dashboard. `series_of` has the series of each panel, by its id."""
    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = 24 * COLUMN + 2 * MARGIN, rows * UNIT + 2 * MARGIN + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' font-family="{FONTS}">',
        f'<rect width="{width}" height="{height}" fill="#f6f8fa"/>',
        text(MARGIN + 4, MARGIN + 20, dashboard["title"], 18, weight="600"),
    ]
    for panel in panels:
        at = panel["gridPos"]
        x, y = MARGIN + at["x"] * COLUMN + GAP / 2, MARGIN + 34 + at["y"] * UNIT + GAP / 2
        place = (x, y, at["w"] * COLUMN - GAP, at["h"] * UNIT - GAP)
        if panel["type"] == "row":
            parts.append(text(x, y + 16, panel["title"], 13, GREY, weight="600"))
        elif panel["type"] == "stat":
            parts.extend(stat(panel, series_of[panel["id"]], place))
        else:
            parts.extend(graph(panel, series_of[panel["id"]], place, begin, end))
    return "\n".join([*parts, "</svg>", ""])
