"""What the scripts print: headings, checks, a live line, a table."""

import sys
import time

LINE_SECONDS_TERMINAL = 0.3
LINE_SECONDS_FILE = 3.0


class Failed(Exception):
    """Something that was promised did not hold."""


def say(text=""):
    print(text, flush=True)


def heading(text):
    say(f"\n== {text}")


def check(holds, text):
    """Shows what was checked, or fails."""
    if not holds:
        raise Failed(text)
    say(f"   ok  {text}")


class LiveLine:
    """One line that keeps changing on a terminal; elsewhere a line every so many seconds."""

    def __init__(self, file_seconds=LINE_SECONDS_FILE):
        self.on_terminal = sys.stdout.isatty()
        self.every_seconds = LINE_SECONDS_TERMINAL if self.on_terminal else file_seconds
        self.next_time = time.monotonic() + self.every_seconds

    def due(self):
        return time.monotonic() >= self.next_time

    def show(self, text):
        self.next_time = time.monotonic() + self.every_seconds
        if self.on_terminal:
            print(f"\r\033[K   {text}", end="", flush=True)
        else:
            say(f"   {text}")

    def clear(self):
        if self.on_terminal:
            print("\r\033[K", end="", flush=True)

    def end(self, text):
        self.show(text)
        if self.on_terminal:
            say()


def table(rows):
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        )
        say("   " + "   ".join([first, *others]))


def percentile(values, share):
    """Of sorted values: the smallest that at least this share of them does not exceed."""
    return values[max(0, -(-len(values) * share // 100) - 1)]
