"""Checks that the Helm chart and the program agree.

- Every variable that the chart renders is a setting of the program.
- ci/full-values.yaml sets every setting that the chart accepts.
- No variable is set twice.
- The chart's version of the program is the program's version.

Run by dev/lib/chart, from the project's folder.
"""

import argparse
import pathlib
import re
import sys

LISTS_OF_KEYS = "src/config/keys/list"
ROLES = {"ingest", "worker", "compensator"}
# Only for `setup`.
MIGRATE_URLS = {"STOCKLOCK__ORDER_STORE__MIGRATE_URL", "STOCKLOCK__STOCK_STORE__MIGRATE_URL"}
# The name of one process. Pods of a Deployment have no lasting names.
NOT_IN_THE_CHART = {
    "STOCKLOCK__KAFKA__GROUP_INSTANCE_ID",
    # No pod is a client of the HTTP API.
    "STOCKLOCK__CLIENT__TOKEN",
    "STOCKLOCK__CLIENT__TOKEN_FILE",
    "STOCKLOCK__CLIENT__CA_LOCATION",
}
WHERE_SETTINGS_ARE = "the chart's values.schema.json and ci/full-values.yaml"


def read(path):
    return pathlib.Path(path).read_text(encoding="utf-8")


def known_variables():
    """The program's settings, as variables."""
    lists = sorted(pathlib.Path(LISTS_OF_KEYS).glob("*.rs"))
    texts = [read(path) for path in lists]
    keys = [key for text in texts for key in re.findall(r'\bkey\(\s*"([^"]+)"', text)]
    return {"STOCKLOCK__" + key.replace(".", "__").upper() for key in keys}


def containers(path):
    """Each container (a pod has one) and its variables. The value of a secret is None."""
    for manifest in re.split(r"^---$", read(path), flags=re.MULTILINE):
        if name := re.search(r"^ +containers:\n +- name: (\S+)$", manifest, re.MULTILINE):
            variable = r'^ +- name: (STOCKLOCK_\S*)\n(?: +value: "(.*)"$)?'
            found = re.findall(variable, manifest, re.MULTILINE)
            yield name[1], [(variable, value or None) for variable, value in found]


def problems_of_container(container, variables, known):
    names = [name for name, _ in variables]
    yield from (f"{container}: {name} is not a setting" for name in sorted(set(names) - known))
    repeated = sorted(name for name in set(names) if names.count(name) > 1)
    yield from (f"{container}: {name} is set twice" for name in repeated)
    for name, value in variables:
        if value and re.fullmatch(r"[0-9.]+e[+-]?[0-9]+", value):
            yield f"{container}: {name}={value} has an exponent, expected plain digits"


def problems_of_rendering(path, known):
    found = dict(containers(path))
    if set(found) != ROLES | {"setup"}:
        yield f"expected the containers of the roles and of setup, found {sorted(found)}"
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
    parser.add_argument("--default", required=True, help="objects of the default values")
    parser.add_argument("--full", required=True, help="objects of ci/full-values.yaml")
    arguments = parser.parse_args()
    known = known_variables()
    problems = [] if known else [f"{LISTS_OF_KEYS}: expected keys, found none"]
    problems += problems_of_rendering(arguments.default, known)
    problems += problems_of_rendering(arguments.full, known)
    problems += settings_left_out(arguments.full, known)
    problems += problems_of_version()
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("the chart and the program do not agree")
        return 1
    print(f"the chart sets {len(known - NOT_IN_THE_CHART)} settings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
