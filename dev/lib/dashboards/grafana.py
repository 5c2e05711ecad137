"""Makes Grafana's JSON of a dashboard from its panels."""

import re
from dataclasses import dataclass

SCHEMA_VERSION = 39
COLUMNS = 24
# In a query, each metric of a process gets these matchers, and a recorded one gets the first.
MATCHERS = ('namespace=~"$namespace"', 'job=~"$job"', 'pod=~"$pod"')
METRIC = re.compile(
    r"(?<![\w:])(namespace:stocklock_\w+:\w+|stocklock_\w+|process_\w+)(?:\{(.*?)\})?"
)
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A panel. From `warn` on, and from `bad` on, its value has another colour."""

    title: str
    description: str
    unit: str
    queries: tuple
    warn: float | None = None
    bad: float | None = None
    stat: bool = False
    stacked: bool = False
    width: int = 12
    height: int = 8
    most: float | None = None
    # A stat that is good when it is high.
    inverted: bool = False
    decimals: int | None = None


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple


@dataclass(frozen=True)
class Dashboard:
    name: str
    title: str
    description: str
    rows: tuple


def filtered(expr):
    """The query, for the processes that the variables of the dashboard select."""

    def select(found):
        name, own = found[1], found[2]
        matchers = MATCHERS[:1] if name.startswith("namespace:") else MATCHERS
        return f"{name}{{{', '.join(([own] if own else []) + list(matchers))}}}"

    return METRIC.sub(select, expr)


def steps(panel):
    colours = ["green", "orange", "red"]
    first, middle, last = reversed(colours) if panel.inverted else colours
    found = [{"color": first, "value": None}]
    if panel.warn is not None:
        found.append({"color": middle, "value": panel.warn})
    if panel.bad is not None:
        found.append({"color": last, "value": panel.bad})
    return found


def field_config(panel):
    has_threshold = panel.warn is not None or panel.bad is not None
    defaults = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps(panel)}}
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.stat:
        defaults["color"] = {"mode": "thresholds"}
    else:
        defaults["min"] = 0
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stacked else 8,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "line" if has_threshold else "off"},
        }
    if panel.most is not None:
        defaults["max"] = panel.most
    return {"defaults": defaults, "overrides": []}


def panel_json(panel, number, x, y):
    if panel.stat:
        options = {
            "colorMode": "background",
            "graphMode": "area",
            "reduceOptions": {"calcs": ["lastNotNull"]},
        }
    else:
        options = {
            "legend": {
                "displayMode": "table",
                "placement": "bottom",
                "calcs": ["lastNotNull", "max"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "id": number,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
        "fieldConfig": field_config(panel),
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": filtered(query.expr),
                "legendFormat": query.legend,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def variable(name, label, query, takes_absent=False):
    """A variable that selects any number of values of a label. `All` means all values of the query,
    or also that a series has no such label."""
    every = {"allValue": ".*"} if takes_absent else {}
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        **every,
        "current": {"text": "All", "value": "$__all"},
    }


def variables():
    info, (namespace, job, _) = "stocklock_build_info", MATCHERS
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        variable("namespace", "Namespace", f"label_values({info}, namespace)", takes_absent=True),
        variable("job", "Job", f"label_values({info}{{{namespace}}}, job)"),
        variable(
            "pod", "Pod", f"label_values({info}{{{namespace}, {job}}}, pod)", takes_absent=True
        ),
    ]


def placed(rows):
    """The panels of the rows, from left to right and from top to bottom."""
    panels, y = [], 0
    for row in rows:
        number = len(panels) + 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        panels.append({"id": number, "type": "row", "title": row.title, "gridPos": place})
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            panels.append(panel_json(panel, len(panels) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return panels


def dashboard_json(dashboard):
    return {
        "uid": f"stocklock-{dashboard.name}",
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["stocklock"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            {"type": "dashboards", "title": "stocklock", "tags": ["stocklock"], "asDropdown": True}
        ],
        "templating": {"list": variables()},
        "panels": placed(dashboard.rows),
    }
