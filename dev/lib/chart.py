"""Checks that the Helm chart and the program agree.

- Every variable that the chart renders is a setting of the program, and none is there twice.
- Every setting that the chart's schema allows is one of the program.
- The value sets of ci/ set every setting that the chart takes, and every value of the chart.
- The roles do not get the URLs of the user that alters tables.
- The rules and dashboards of the chart's folders are in its objects.
- The triggers of KEDA name the groups and topics that the program has by default.
- The chart's version of the program is the program's version.

Run by dev/lib/chart, from the project's folder, with the Python of kubernetes-validate.
"""

import argparse
import json
import pathlib
import re
import sys

import yaml

LISTS_OF_KEYS = "src/config/keys/list"
CHART = pathlib.Path("helm/stocklock")
ROLES = {"ingest", "worker", "compensator"}
CONTAINERS = ROLES | {"setup", "doctor"}
# Only for `setup`.
MIGRATE_URLS = {"STOCKLOCK__ORDER_STORE__MIGRATE_URL", "STOCKLOCK__STOCK_STORE__MIGRATE_URL"}
# Files and texts of secrets that the chart passes on.
FROM_SECRETS = {
    "STOCKLOCK__AUTH__TOKENS_FILE",
    "STOCKLOCK__HTTP__TLS_CERTIFICATE_LOCATION",
    "STOCKLOCK__HTTP__TLS_KEY_LOCATION",
}
WHERE_SETTINGS_ARE = "the chart's values.schema.json and ci/full-values.yaml"
# What the chart has to know of the program's defaults: the setting, and where a trigger has it.
KEDA_DEFAULTS = {
    ("worker", "topic"): "topics.orders",
    ("worker", "consumerGroup"): "kafka.group_id",
    ("compensator", "topic"): "topics.order_status",
    ("compensator", "consumerGroup"): "compensator.group_id",
}
# Values that are replaced as a whole, or that Kubernetes alone reads.
WHOLE = {
    "behavior",
    "livenessProbe",
    "podSecurityContext",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "strategy",
    "updateStrategy",
}
# Roles whose templates are the same.
ALIKE = {"worker": "compensator", "compensator": "worker"}


def read(path):
    return pathlib.Path(path).read_text(encoding="utf-8")


def defaults():
    """The program's settings with their defaults."""
    texts = [read(path) for path in sorted(pathlib.Path(LISTS_OF_KEYS).glob("*.rs"))]
    pattern = r'\bkey\(\s*"([^"]+)",\s*"([^"]*)"'
    return {name: value for text in texts for name, value in re.findall(pattern, text)}


def variable(setting):
    return "STOCKLOCK__" + setting.replace(".", "__").upper()


def objects(path):
    return [one for one in yaml.safe_load_all(read(path)) if one]


def containers(path):
    """The containers of stocklock, with their variables."""
    for one in objects(path):
        spec = one.get("spec") or {}
        pod = (spec.get("template") or {}).get("spec") or spec
        for container in pod.get("containers", []):
            if container["name"] in CONTAINERS:
                yield container["name"], container["env"]


def problems_of_containers(path, known):
    found = set()
    for name, variables in containers(path):
        found.add(name)
        names = [one["name"] for one in variables]
        settings = {one for one in names if one.startswith("STOCKLOCK_")}
        unknown = sorted(settings - known - FROM_SECRETS)
        yield from (f"{name}: {one} is not a setting" for one in unknown)
        repeated = sorted(one for one in set(names) if names.count(one) > 1)
        yield from (f"{name}: {one} is set twice" for one in repeated)
        if name != "setup":
            yield from (f"{name}: {one} is for setup alone" for one in settings & MIGRATE_URLS)
        for one in variables:
            if re.fullmatch(r"[0-9.]+e[+-]?[0-9]+", one.get("value", "")):
                yield f"{name}: {one['name']}={one['value']} has an exponent, expected plain digits"
    if found != CONTAINERS:
        yield f"expected the containers {sorted(CONTAINERS)}, found {sorted(found)}"


def settings_left_out(paths, known):
    used = {one["name"] for path in paths for _, env in containers(path) for one in env}
    for name in sorted(known - used):
        yield f"{name} is in no value set: it belongs in {WHERE_SETTINGS_ARE}"


def leaves(values, path=()):
    """The paths of the values."""
    if isinstance(values, dict) and values and not (path and path[-1] in WHOLE):
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    else:
        yield path


def has(values, path):
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def values_left_out():
    sets = [yaml.safe_load(read(path)) for path in sorted(CHART.glob("ci/*.yaml"))]
    for path in leaves(yaml.safe_load(read(CHART / "values.yaml"))):
        alike = (ALIKE.get(path[0], path[0]), *path[1:])
        if not any(has(one, path) or has(one, alike) for one in sets):
            yield f"{'.'.join(path)} is in no value set of {CHART}/ci"


def problems_of_triggers(path, known):
    found = {}
    for one in objects(path):
        if one["kind"] == "ScaledObject":
            role = one["metadata"]["name"].rpartition("-")[2]
            for field, value in one["spec"]["triggers"][0]["metadata"].items():
                found[role, field] = value
    for (role, field), setting in KEDA_DEFAULTS.items():
        if found.get((role, field)) != known.get(setting):
            says = f"{role}: the trigger's {field} is {found.get((role, field))}"
            yield f"{says}, and the default of {setting} is {known.get(setting)}"


def problems_of_monitoring(path):
    """The rules and the dashboards arrive as they are in the chart's folders."""
    rendered = objects(path)
    maps = [one for one in rendered if one["kind"] == "ConfigMap"]
    found = {name: json.loads(text) for one in maps for name, text in one["data"].items()}
    dashboards = {path.name: json.loads(read(path)) for path in CHART.glob("dashboards/*.json")}
    if found != dashboards:
        yield f"the config maps have the dashboards {sorted(found)}, expected {sorted(dashboards)}"
    for one in maps:
        if one["metadata"]["labels"].get("grafana_dashboard") != "1":
            yield f"{one['metadata']['name']} does not have the label of Grafana's sidecar"
    files = [yaml.safe_load(read(path)) for path in sorted(CHART.glob("rules/*.yaml"))]
    groups = [group for one in files for group in one.get("groups", [])]
    found = [one["spec"]["groups"] for one in rendered if one["kind"] == "PrometheusRule"]
    if found != [groups]:
        yield f"the PrometheusRule does not have the {len(groups)} groups of the folder rules"


def version(path, pattern):
    found = re.search(pattern, read(path), re.MULTILINE)
    return found[1] if found else None


def settings_allowed(*path):
    """The settings that an object of the chart's schema allows, by section and key."""
    schema = json.loads(read(CHART / "values.schema.json"))
    for name in path:
        schema = schema["properties"][name]
    for section, keys in schema["properties"].items():
        yield from (f"{section}.{key}" for key in keys["properties"])


def problems_of_schema(known):
    """A setting that no value set has would be rendered too, and the pods would refuse it."""
    for path in (("config",), ("secret", "keys"), ("setup", "secret", "keys")):
        allowed = list(settings_allowed(*path))
        if not allowed:
            yield f"values.schema.json: {'.'.join(path)} allows no setting"
        for setting in allowed:
            if variable(setting) not in known | FROM_SECRETS:
                yield f"values.schema.json: {'.'.join(path)}.{setting} is not a setting"


def problems_of_version():
    program = version("Cargo.toml", r'^version = "(.+)"$')
    chart = version(CHART / "Chart.yaml", r'^appVersion: "(.+)"$')
    if program is None or chart != program:
        yield f"appVersion in Chart.yaml is {chart}, version in Cargo.toml {program}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="rendered objects, a file a value set")
    folder = parser.parse_args().folder
    settings = defaults()
    known = {variable(name) for name in settings}
    paths = sorted(folder.glob("*.yaml"))
    problems = [] if known else [f"{LISTS_OF_KEYS}: expected keys, found none"]
    for path in paths:
        problems += [f"{path.stem}: {text}" for text in problems_of_containers(path, known)]
    problems += settings_left_out(paths, known)
    problems += values_left_out()
    problems += problems_of_schema(known)
    problems += problems_of_triggers(folder / "sasl.yaml", settings)
    problems += problems_of_monitoring(folder / "monitoring.yaml")
    problems += problems_of_version()
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("the chart and the program do not agree")
        return 1
    print(f"the chart sets {len(known)} settings, in {len(paths)} value sets")
    return 0


if __name__ == "__main__":
    sys.exit(main())
