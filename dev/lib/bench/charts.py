"""Draws charts as SVG: lines and bars.

The colours and the grey of the text have contrast on white and on black. A series differs from the
others by its colour, and also by its mark or its place.
"""

import math
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 860, 400
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 76, 56
FONTS = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
GREY = "#7b8189"
COLOURS = ("#2f81f7", "#db6d28", "#2da44e", "#a371f7", "#8b949e")


@dataclass(frozen=True)
class Line:
    name: str
    # Pairs (x, y), in order of x.
    points: list
    colour: int
    dashed: bool = False


def _ticks(most):
    """Round values from 0 up to at least `most`, in equal steps."""
    magnitude = 10 ** math.floor(math.log10(most / 4))
    step = next(size * magnitude for size in (1, 2, 2.5, 5, 10) if size * magnitude * 5 >= most)
    return [step * count for count in range(math.ceil(most / step - 1e-9) + 1)]


def _decades(least, most):
    """Powers of ten from at most `least` to at least `most`."""
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def number(value):
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def short(value):
    """A number that is not wider than a bar."""
    return f"{value / 1000:.1f}k" if value >= 10_000 else number(value)


class Axis:
    """Converts values to places in the drawing. The scale ends at the first and the last tick."""

    def __init__(self, ticks, begin, end, logarithmic=False, margin=0.0):
        self.ticks = ticks
        self.logarithmic = logarithmic
        low, high = self._scaled(ticks[0]), self._scaled(ticks[-1])
        self.low, self.span = low, (high - low) or 1
        self.begin, self.length = begin + margin, (
            end - begin - 2 * margin if end > begin else end - begin + 2 * margin
        )

    def _scaled(self, value):
        return math.log10(value) if self.logarithmic else value

    def place(self, value):
        return self.begin + (self._scaled(value) - self.low) / self.span * self.length


class Drawing:
    def __init__(self, title, y_title):
        self.parts = []
        self.text(LEFT, 22, title, size=15, weight="bold", anchor="start")
        self.text(LEFT - 62, TOP - 12, y_title, anchor="start")

    def text(self, x, y, words, size=12, weight="normal", anchor="middle", colour=GREY):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
            f'text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'
        )

    def line(self, x1, y1, x2, y2, opacity=1.0):
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{GREY}" '
            f'stroke-opacity="{opacity}"/>'
        )

    def y_axis(self, axis):
        for tick in axis.ticks:
            y = axis.place(tick)
            self.line(LEFT, y, WIDTH - RIGHT, y, 1.0 if tick == axis.ticks[0] else 0.3)
            self.text(LEFT - 8, y + 4, number(tick), anchor="end")

    def x_title(self, words):
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, words)

    def legend(self, names, mark):
        """`mark(index, x, y)` draws the sign of the series with this index."""
        x = LEFT
        for index, name in enumerate(names):
            mark(index, x + 12, 44)
            self.text(x + 30, 48, name, anchor="start")
            x += 48 + 6.8 * len(name)

    def mark(self, x, y, colour):
        shape = colour % 3
        fill = COLOURS[colour]
        if shape == 0:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}"/>')
        elif shape == 1:
            self.parts.append(
                f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{fill}"/>'
            )
        else:
            self.parts.append(f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z" fill="{fill}"/>')

    def stroke(self, places, colour, dashed):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dashes = ' stroke-dasharray="7 5"' if dashed else ""
        self.parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[colour]}" '
            f'stroke-width="2.5"{dashes}/>'
        )

    def rectangle(self, x, y, width, height, colour):
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{COLOURS[colour]}"/>'
        )

    def svg(self):
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" font-family="{FONTS}">\n'
            f"{body}\n</svg>\n"
        )


def line_chart(title, x_title, y_title, lines, x_ticks, y_log=False):
    """The SVG of a line chart.

    The x axis is logarithmic and has the ticks `x_ticks`. The y axis begins with 0, or is
    logarithmic if `y_log` is set.
    """
    drawing = Drawing(title, y_title)
    heights = [y for line in lines for _, y in line.points]
    ticks = _decades(min(heights), max(heights)) if y_log else _ticks(max(heights))
    across = Axis(x_ticks, LEFT, WIDTH - RIGHT, logarithmic=True, margin=24)
    up = Axis(ticks, HEIGHT - BOTTOM, TOP, logarithmic=y_log)
    drawing.y_axis(up)
    for tick in x_ticks:
        drawing.line(across.place(tick), HEIGHT - BOTTOM, across.place(tick), HEIGHT - BOTTOM + 5)
        drawing.text(across.place(tick), HEIGHT - BOTTOM + 20, number(tick))
    drawing.x_title(x_title)
    for line in lines:
        places = [(across.place(x), up.place(y)) for x, y in line.points]
        drawing.stroke(places, line.colour, line.dashed)
        for x, y in places:
            drawing.mark(x, y, line.colour)

    def sign(index, x, y):
        drawing.stroke([(x - 12, y), (x + 12, y)], lines[index].colour, lines[index].dashed)
        drawing.mark(x, y, lines[index].colour)

    drawing.legend([line.name for line in lines], sign)
    return drawing.svg()


def bar_chart(title, x_title, y_title, groups, series):
    """The SVG of a bar chart. An entry of `series` is (name, a value or None for each group)."""
    drawing = Drawing(title, y_title)
    up = Axis(
        _ticks(max(value for _, heights in series for value in heights if value)),
        HEIGHT - BOTTOM,
        TOP,
    )
    drawing.y_axis(up)
    group_width = (WIDTH - LEFT - RIGHT) / len(groups)
    bar_width = min(44.0, group_width * 0.86 / len(series))
    for place, group in enumerate(groups):
        middle = LEFT + group_width * (place + 0.5)
        drawing.text(middle, HEIGHT - BOTTOM + 20, group)
        for index, (_, heights) in enumerate(series):
            x = middle + (index - len(series) / 2) * bar_width
            if heights[place] is not None:
                y = up.place(heights[place])
                drawing.rectangle(x + 1.5, y, bar_width - 3, HEIGHT - BOTTOM - y, index)
                drawing.text(x + bar_width / 2, y - 5, short(heights[place]), size=10)
            else:
                drawing.text(x + bar_width / 2, HEIGHT - BOTTOM - 5, "–", size=10)
    drawing.x_title(x_title)

    def sign(index, x, y):
        drawing.rectangle(x, y - 6, 12, 12, index)

    drawing.legend([name for name, _ in series], sign)
    return drawing.svg()
