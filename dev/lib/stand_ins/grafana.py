#!/usr/bin/env python3
"""A stand-in for Grafana, for a machine that cannot get it: it draws nothing.

It loads the provisioned data sources and dashboards from the same files as Grafana, asks the data
source each query of each panel, and answers on port 3000:

  /api/health      200, once every file is loaded; the program ends if one is wrong
  /api/dashboards  the dashboards with the number of panels, queries, answers and errors (JSON)
"""

import http.server
import json
import pathlib
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

import yaml

PROVISIONING = pathlib.Path("/etc/grafana/provisioning")
PORT = 3000
MAX_ANSWER_SECONDS = 10
# What Grafana puts in the place of its own variables.
INTERVALS = {"__rate_interval": "1m", "__interval": "15s", "__range": "5m"}
ALL = ".*"


def provisioned(kind):
    """Each entry of the list `kind` in the provisioning files of the folder `kind`."""
    folder = {"datasources": "datasources", "providers": "dashboards"}[kind]
    for path in sorted((PROVISIONING / folder).glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        if content.get("apiVersion") != 1:
            sys.exit(f"{path}: expected apiVersion 1")
        yield from content[kind]


def panels(dashboard):
    """All panels, those inside a row too."""
    for panel in dashboard.get("panels", []):
        yield panel
        yield from panel.get("panels", [])


def fill_in(query):
    """The query with a value for each variable: everything, for those of the dashboard."""

    def value(match):
        name = match.group(1) or match.group(2)
        return INTERVALS.get(name.split(":")[0], ALL)

    return re.sub(r"\$\{([^}]+)\}|\$(\w+)", value, query)


def ask(source, query):
    """The number of series of the answer. Fails with an error of urllib."""
    address = f"{source['url']}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(address, timeout=MAX_ANSWER_SECONDS) as answer:
        return len(json.load(answer)["data"]["result"])


class Grafana:
    def __init__(self):
        self.sources = {source["uid"]: source for source in provisioned("datasources")}
        self.default = next(s for s in self.sources.values() if s.get("isDefault"))
        self.dashboards = {}
        for provider in provisioned("providers"):
            for path in sorted(pathlib.Path(provider["options"]["path"]).glob("**/*.json")):
                dashboard = json.loads(path.read_text())
                if not dashboard.get("title") or not dashboard.get("uid"):
                    sys.exit(f"{path}: expected a title and a uid")
                self.dashboards[dashboard["uid"]] = dashboard

    def source_of(self, panel, target):
        """The data source that a query names; the default one for a variable of the dashboard."""
        uid = (target.get("datasource") or panel.get("datasource") or {}).get("uid", "")
        if not uid or uid.startswith("$"):
            return self.default
        return self.sources[uid]

    def report(self):
        """What each dashboard has, and how Prometheus answers its queries now."""
        return [self.report_of(dashboard) for dashboard in self.dashboards.values()]

    def report_of(self, dashboard):
        found = {"title": dashboard["title"], "panels": 0, "queries": 0, "answered": 0}
        errors = []
        for panel in panels(dashboard):
            found["panels"] += panel.get("type") != "row"
            for target in panel.get("targets", []):
                query = fill_in(target["expr"])
                found["queries"] += 1
                try:
                    found["answered"] += ask(self.source_of(panel, target), query) > 0
                except (urllib.error.URLError, KeyError, ValueError) as error:
                    errors.append(f"{panel.get('title')}: {query}: {error!r}")
        return {**found, "errors": errors}


class Handler(http.server.BaseHTTPRequestHandler):
    grafana = None

    def do_GET(self):
        if self.path == "/api/health":
            self.answer(200, {"database": "none", "version": "stand-in"})
        elif self.path == "/api/dashboards":
            self.answer(200, self.grafana.report())
        else:
            self.answer(404, {"message": "the stand-in knows /api/health and /api/dashboards"})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Logs no requests."""


def main():
    Handler.grafana = Grafana()
    print(f"stand-in for Grafana: {len(Handler.grafana.dashboards)} dashboards", flush=True)
    http.server.ThreadingHTTPServer(("", PORT), Handler).serve_forever()


if __name__ == "__main__":
    main()
