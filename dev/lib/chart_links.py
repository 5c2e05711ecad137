"""Checks that the chart's objects find each other, which no schema and no API server checks.

- Each selector selects pods.
- Probes, Services and the PodMonitor name ports that a container has.
- Autoscalers name a workload, routes a Service, triggers an authentication that exist.
- Each mount names a volume.

Run by dev/lib/chart, with the Python of kubernetes-validate.
"""

import argparse
import pathlib
import sys

import yaml

WORKLOADS = {"Deployment", "StatefulSet", "Job"}
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
# A TriggerAuthentication that is somebody else's.
FOREIGN = {("TriggerAuthentication", "kafka")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path, help="rendered objects")
    problems = []
    for path in parser.parse_args().files:
        text = path.read_text(encoding="utf-8")
        objects = [one for one in yaml.safe_load_all(text) if one]
        for one in objects:
            found = problems_of(one, objects)
            problems += [f"{path.stem}: {one['kind']} {name_of(one)}: {what}" for what in found]
    print("\n".join(problems) or "the objects find each other")
    return 1 if problems else 0


def name_of(one):
    return one["metadata"]["name"]


def pods(objects):
    """The labels and the spec of each pod, or of the pods of a workload."""
    for one in objects:
        if one["kind"] in WORKLOADS:
            template = one["spec"]["template"]
            yield template["metadata"]["labels"], template["spec"]
        elif one["kind"] == "Pod":
            yield one["metadata"]["labels"], one["spec"]


def selector_of(one):
    """The labels by which it selects pods of the chart."""
    spec = one.get("spec") or {}
    if one["kind"] == "Service":
        return spec["selector"]
    if one["kind"] == "NetworkPolicy":
        return spec["podSelector"]["matchLabels"]
    if one["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget", "PodMonitor"}:
        return spec["selector"]["matchLabels"]
    return None


def problems_of(one, objects):
    selector = selector_of(one)
    if selector is not None:
        chosen = [spec for labels, spec in pods(objects) if selector.items() <= labels.items()]
        if not chosen:
            yield f"selects no pod by {selector}"
        for port in ports_named_by(one):
            if not any(port in ports_of(spec) for spec in chosen):
                yield f"no pod that it selects has the port {port}"
    for _, spec in pods([one]):
        yield from problems_of_pod(spec)
    there = {(other["kind"], name_of(other)) for other in objects} | FOREIGN
    for kind, name in names_in(one):
        if (kind, name) not in there:
            yield f"{kind} {name} is missing"


def ports_named_by(one):
    if one["kind"] == "Service":
        return [port["targetPort"] for port in one["spec"]["ports"]]
    if one["kind"] == "PodMonitor":
        return [end["port"] for end in one["spec"]["podMetricsEndpoints"]]
    return []


def ports_of(spec):
    containers = spec["containers"]
    return {port["name"] for container in containers for port in container.get("ports", [])}


def problems_of_pod(spec):
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in spec["containers"]:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"no volume {mount['name']}"
        for probe in PROBES:
            port = container.get(probe, {}).get("httpGet", {}).get("port")
            if port is not None and port not in ports_of(spec):
                yield f"{probe}: no port {port}"


def names_in(one):
    """The kinds and names of the objects that it speaks of."""
    spec = one.get("spec") or {}
    if target := spec.get("scaleTargetRef"):
        yield target["kind"], target["name"]
    for trigger in spec.get("triggers", []):
        if reference := trigger.get("authenticationRef"):
            yield "TriggerAuthentication", reference["name"]
    if one["kind"] == "StatefulSet":
        yield "Service", spec["serviceName"]
    for rule in spec.get("rules", []):
        for backend in rule.get("backendRefs", []):
            yield "Service", backend["name"]
        for path in rule.get("http", {}).get("paths", []):
            yield "Service", path["backend"]["service"]["name"]


if __name__ == "__main__":
    sys.exit(main())
