"""Counts the answers in a report of schemathesis, by endpoint and status."""

import collections
import json
import urllib.request

from show import say


def count(report):
    """The number of answers by endpoint, such as `GET /v1/orders/{id}`, and by status.

    An answer is missing if the connection was lost; its status is None then.
    """
    found = collections.defaultdict(collections.Counter)
    with open(report, encoding="utf-8") as events:
        for event in map(json.loads, events):
            recorder = event.get("ScenarioFinished", {}).get("recorder") or {}
            cases = recorder.get("cases", {})
            for case_id, interaction in recorder.get("interactions", {}).items():
                case, answer = cases[case_id]["value"], interaction["response"]
                endpoint = f"{case['method']} {case['path']}"
                found[endpoint][answer and answer["status_code"]] += 1
    return found


def show(found):
    for endpoint, statuses in sorted(found.items()):
        if set(statuses) != {405}:
            counts = sorted(statuses.items(), key=str)
            text = ", ".join(f"{status}: {number:,}" for status, number in counts)
            say(f"   {endpoint:<32} {text}")


def without_success(found, url):
    """The documented endpoints that had no answer of status 200 to 299."""
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as answer:
        paths = json.load(answer)["paths"]
    documented = {
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method in methods
        # schemathesis reads the document itself, and does not test it.
        if path != "/openapi.json"
    }
    return sorted(
        endpoint
        for endpoint in documented
        if not any(200 <= (status or 0) < 300 for status in found.get(endpoint, ()))
    )
