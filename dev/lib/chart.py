"""What the Helm chart and the program have to agree on.

Every variable that the chart renders is a setting that the program knows; the values that set everything leave none of
them out but what the chart does not take; none is set twice; and the chart's version of the program is the program's.

Run by dev/lib/chart, from the project's folder.
"""

import argparse
import pathlib
import re
import sys

ROLES = {"ingest", "worker", "compensator"}
# For `setup` alone.
MIGRATE_URLS = {"STOCKLOCK__ORDER_STORE__MIGRATE_URL", "STOCKLOCK__STOCK_STORE__MIGRATE_URL"}
# A name for one process alone, which pods of a Deployment do not have.
NOT_IN_THE_CHART = {"STOCKLOCK__KAFKA__GROUP_INSTANCE_ID"}
WHERE_SETTINGS_ARE = "the chart's values.schema.json and ci/full-values.yaml"


def read(path):
    return pathlib.Path(path).read_text(encoding="utf-8")


def known_variables():
    """The program's settings, as variables."""
    keys = re.findall(r'\bkey\(\s*"([^"]+)"', read("src/config/keys.rs"))
    return {"STOCKLOCK__" + key.replace(".", "__").upper() for key in keys}


def containers(path):
    """The name of each container, a pod has one, and the variables with their values; None where a secret holds it."""
    for manifest in re.split(r"^---$", read(path), flags=re.MULTILINE):
        if name := re.search(r"^ +containers:\n +- name: (\S+)$", manifest, re.MULTILINE):
            variable = r'^ +- name: (STOCKLOCK_\S*)\n(?: +value: "(.*)"$)?'
            found = re.findall(variable, manifest, re.MULTILINE)
            yield name[1], [(variable, value or None) for variable, value in found]


def problems_of_container(container, variables, known):
    names = [name for name, _ in variables]
    yield from (f"{container}: {name} is no setting" for name in sorted(set(names) - known))
    yield from (f"{container}: {name} is set twice" for name in sorted(set(names)) if names.count(name) > 1)
    for name, value in variables:
        if value and re.fullmatch(r"[0-9.]+e[+-]?[0-9]+", value):
            yield f"{container}: {name}={value} is not how a number is written"


def problems_of_rendering(path, known):
    found = dict(containers(path))
    if set(found) != ROLES | {"setup"}:
        yield f"the containers are {sorted(found)}"
    for container, variables in found.items():
        yield from problems_of_container(container, variables, known)


def settings_left_out(path, known):
    for container, variables in containers(path):
        wanted = known - NOT_IN_THE_CHART - (set() if container == "setup" else MIGRATE_URLS)
        for name in sorted(wanted - {name for name, _ in variables}):
            yield f"{container}: {name} is not set: it belongs in {WHERE_SETTINGS_ARE}"


def version(path, pattern):
    found = re.search(pattern, read(path), re.MULTILINE)
    return found[1] if found else None


def problems_of_version():
    program = version("Cargo.toml", r'^version = "(.+)"$')
    chart = version("helm/stocklock/Chart.yaml", r'^appVersion: "(.+)"$')
    if program is None or chart != program:
        yield f"appVersion in Chart.yaml is {chart}, version in Cargo.toml {program}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--default", required=True, help="what the chart renders by itself")
    parser.add_argument("--full", required=True, help="what it renders where every setting is set")
    arguments = parser.parse_args()
    known = known_variables()
    problems = [] if known else ["src/config/keys.rs has no keys"]
    problems += problems_of_rendering(arguments.default, known)
    problems += problems_of_rendering(arguments.full, known)
    problems += settings_left_out(arguments.full, known)
    problems += problems_of_version()
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"the chart sets {len(known - NOT_IN_THE_CHART)} settings" if not problems else "the chart and the program do not agree")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
