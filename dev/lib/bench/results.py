"""Reads and writes the raw results.

The file has a JSON line for each run. For each section, it has one more line: the `setting`, which
says on what machine, when and how the section was measured.
"""

import json
import statistics


class Results:
    """The `setting` and the `runs` of each section, as they are in the file."""

    def __init__(self, path):
        self.path = path
        self.settings, self.runs = {}, {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                if record["kind"] == "setting":
                    self.settings[record["section"]] = record
                    self.runs[record["section"]] = []
                else:
                    self.runs[record["section"]].append(record)

    def replace(self, setting, runs):
        """Writes a section's results to the file. They replace the old results of the section."""
        section = setting["section"]
        self.settings[section] = {"kind": "setting", **setting}
        self.runs[section] = [{"kind": "run", **run} for run in runs]
        lines = []
        for name in sorted(self.settings):
            lines += [self.settings[name], *self.runs[name]]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(
            "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines), encoding="utf-8"
        )
        partial.replace(self.path)

    def select(self, section, **labels):
        """The runs of a section that have all these labels."""
        runs = self.runs.get(section, [])
        return [
            run
            for run in runs
            if all(run["labels"].get(name) == value for name, value in labels.items())
        ]

    def labels(self, section, name, **labels):
        """The different values of a label, in the order in which they were measured."""
        chosen = [run["labels"] for run in self.select(section, **labels)]
        return list(dict.fromkeys(run[name] for run in chosen if name in run))


def values(runs, figure):
    """The values of a figure, from the runs that measured it."""
    found = (run["result"].get(figure) for run in runs)
    return [value for value in found if value is not None]


def median(runs, figure):
    """The median of a figure, or None if there is no run."""
    return statistics.median(values(runs, figure)) if runs else None


def ratios(runs, others, figure):
    """The figure of `runs` divided by that of `others`, for each round that both have."""
    of_others = {other["labels"]["round"]: other["result"][figure] for other in others}
    rounds = [(run["labels"]["round"], run["result"][figure]) for run in runs]
    return [value / of_others[number] for number, value in rounds if number in of_others]
