"""Writes the Grafana dashboards of the chart.

usage: python3 dev/lib/dashboards [--check]

The panels are in the files beside this one. The output is helm/stocklock/dashboards/NAME.json.
--check writes nothing, and exits with 1 if a file is not what would be written.
"""

import json
import pathlib
import sys

import dependencies
import locks
import overview
import pipeline
import slo
from grafana import dashboard_json

FOLDER = pathlib.Path(__file__).parents[3] / "helm/stocklock/dashboards"
DASHBOARDS = [module.DASHBOARD for module in (overview, pipeline, locks, dependencies, slo)]


def main(arguments):
    if arguments not in ([], ["--check"]):
        sys.exit(__doc__)
    expected = {
        f"{dashboard.name}.json": json.dumps(dashboard_json(dashboard), indent=1) + "\n"
        for dashboard in DASHBOARDS
    }
    if not arguments:
        for name, text in expected.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
        return 0
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    wrong = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    for name in wrong:
        print(f"{FOLDER / name}: not as its panels say: run python3 dev/lib/dashboards")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
