"""Checks the Helm chart in a real Kubernetes API server: the one that KUBECONFIG names.

- Each object of each value set passes the server's own validation, by a dry run that refuses
  unknown fields. No pod would violate the Pod Security Standard "restricted".
- Helm installs the chart, upgrades it, rolls it back and uninstalls it, without hooks. After each
  step the server has exactly the objects that the values ask for.

The namespace is new, and deleted at the end. Custom resources that are missing are created, and
stay. Controllers and nodes are not needed: no pod starts.

Run by dev/lib/chart, from the project's folder, with the Python of kubernetes-validate.
"""

import argparse
import base64
import json
import os
import pathlib
import secrets
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import yaml

RELEASE = "demo"
ESTABLISHED_SECONDS = 60
TIMEOUT_SECONDS = 30
# What a release has at different times. Deployments become StatefulSets, and come back.
STEPS = [
    ("install", ["monitoring", "keda"]),
    ("upgrade", ["networkpolicy", "hpa", "statefulset", "ingress"]),
]
CLUSTER_WIDE = {"CustomResourceDefinition", "Namespace"}
# Kinds of which a release has objects at some step.
KINDS = [
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("networking.k8s.io/v1", "Ingress"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--helm", required=True, help="the program")
    parser.add_argument("--crds", required=True, type=pathlib.Path, help="their folder")
    parser.add_argument("chart", type=pathlib.Path)
    arguments = parser.parse_args()
    server = Server(os.environ["KUBECONFIG"].split(os.pathsep)[0])
    create_custom_resources(server, arguments.crds)
    namespace = f"stocklock-chart-{secrets.token_hex(4)}"
    server.create(namespace_object(namespace))
    helm = Helm(arguments.helm, arguments.chart, namespace, server.version)
    try:
        validate_value_sets(server, helm)
        walk_through_a_release(server, helm)
    finally:
        server.call("DELETE", f"/api/v1/namespaces/{namespace}")
    return 0


def namespace_object(name):
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    labels["pod-security.kubernetes.io/warn"] = "restricted"
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


class Refused(Exception):
    """The server answered with an error."""


class Server:
    """Speaks to the API server of a kubeconfig's current context."""

    def __init__(self, path):
        config = yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8"))
        context = named(config["contexts"], config["current-context"])["context"]
        cluster = named(config["clusters"], context["cluster"])["cluster"]
        user = named(config["users"], context["user"])["user"]
        self.url = cluster["server"].rstrip("/")
        self.headers = {"Content-Type": "application/json"}
        if token := user.get("token"):
            self.headers["Authorization"] = f"Bearer {token}"
        self.tls = tls_context(cluster, user)
        self.plurals = {}
        found = self.call("GET", "/version")
        # The version of a server that was built from source is no semantic one.
        self.version = f"{found['major']}.{found['minor'].rstrip('+')}"
        print(f"API server of Kubernetes {self.version} at {self.url}")

    def call(self, method, path, body=None):
        """Fails with Refused. Warnings of the server are in `self.warnings`."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers, method=method)
        try:
            with urllib.request.urlopen(request, None, TIMEOUT_SECONDS, context=self.tls) as answer:
                self.warnings = answer.headers.get_all("Warning") or []
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise Refused(f"{method} {path}: {error.code}: {text}") from None

    def path(self, api_version, kind, namespace=None):
        """The path of a kind's objects."""
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        if api_version not in self.plurals:
            listed = self.call("GET", root)["resources"]
            plurals = {one["kind"]: one["name"] for one in listed if "/" not in one["name"]}
            self.plurals[api_version] = plurals
        plural = self.plurals[api_version][kind]
        within = "" if kind in CLUSTER_WIDE else f"/namespaces/{namespace}"
        return f"{root}{within}/{plural}"

    def create(self, one, namespace=None, query=""):
        path = self.path(one["apiVersion"], one["kind"], namespace)
        return self.call("POST", f"{path}?fieldValidation=Strict{query}", one)

    def names(self, api_version, kind, namespace):
        """The names of the release's objects of a kind."""
        path = self.path(api_version, kind, namespace)
        selector = f"labelSelector=app.kubernetes.io/instance={RELEASE}"
        found = self.call("GET", f"{path}?{selector}")["items"]
        return {(kind, one["metadata"]["name"]) for one in found}


def named(entries, name):
    return next(one for one in entries if one["name"] == name)


def tls_context(cluster, user):
    context = ssl.create_default_context(cafile=cluster.get("certificate-authority"))
    if data := cluster.get("certificate-authority-data"):
        context.load_verify_locations(cadata=base64.b64decode(data).decode())
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if data := user.get("client-certificate-data"):
        with tempfile.NamedTemporaryFile() as pem:
            pem.write(base64.b64decode(data) + b"\n" + base64.b64decode(user["client-key-data"]))
            pem.flush()
            context.load_cert_chain(pem.name)
    elif path := user.get("client-certificate"):
        context.load_cert_chain(path, user["client-key"])
    return context


def create_custom_resources(server, folder):
    for path in sorted(folder.glob("*.yaml")):
        one = yaml.safe_load(path.read_text(encoding="utf-8"))
        name = one["metadata"]["name"]
        where = server.path(one["apiVersion"], one["kind"])
        try:
            server.call("GET", f"{where}/{name}")
        except Refused:
            print(f"creating {name}")
            server.create(one)
        wait_until_established(server, f"{where}/{name}")


def wait_until_established(server, path):
    end = time.monotonic() + ESTABLISHED_SECONDS
    while time.monotonic() < end:
        status = server.call("GET", path).get("status") or {}
        conditions = status.get("conditions") or []
        if any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
            return
        time.sleep(0.5)
    sys.exit(f"{path} is not established after {ESTABLISHED_SECONDS} s")


class Helm:
    def __init__(self, program, chart, namespace, version):
        self.program, self.chart, self.namespace = program, chart, namespace
        self.version = version

    def run(self, *arguments):
        """Its output. Fails with Refused if Helm does."""
        command = [self.program, *arguments, "--namespace", self.namespace]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise Refused(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def objects(self, *arguments):
        """The objects that it renders, hooks included."""
        rendered = self.run(
            "template", RELEASE, str(self.chart), "--kube-version", self.version, *arguments
        )
        return [one for one in yaml.safe_load_all(rendered) if one]

    def values(self, names):
        flags = []
        for name in names:
            flags += ["--values", str(self.chart / "ci" / f"{name}-values.yaml")]
        # The namespace of the monitoring's objects may be another one. Here there is one only.
        for key in ("podMonitor", "prometheusRule", "dashboards"):
            flags += ["--set", f"metrics.{key}.namespace={self.namespace}"]
        return flags


def validate_value_sets(server, helm):
    paths = sorted((helm.chart / "ci").glob("*-values.yaml"))
    names = [path.name.removesuffix("-values.yaml") for path in paths]
    count, problems = 0, []
    for name in names:
        for one in helm.objects(*helm.values([name])):
            count += 1
            text = problem_of_dry_run(server, helm, one)
            if text:
                problems.append(f"{name}: {one['kind']} {one['metadata']['name']}: {text}")
    if problems:
        sys.exit("\n".join(problems))
    print(f"dry run: {count} objects of {len(names)} value sets, no problem, no warning")


def problem_of_dry_run(server, helm, one):
    """None if the server takes the object without a warning."""
    if one["kind"] == "Pod":
        # Classes of another cluster: a pod without its class is refused.
        for key in ("priorityClassName", "runtimeClassName"):
            one["spec"].pop(key, None)
    try:
        server.create(one, helm.namespace, "&dryRun=All")
    except Refused as error:
        return str(error)
    return "; ".join(server.warnings) or None


def walk_through_a_release(server, helm):
    for action, names in STEPS:
        flags = helm.values(names)
        helm.run(action, RELEASE, str(helm.chart), "--no-hooks", *flags)
        expect_objects(server, helm, action, expected_objects(helm, flags))
    try:
        helm.run("upgrade", RELEASE, str(helm.chart), "--no-hooks", "--set", "worker.replicas=13")
    except Refused as error:
        print(f"upgrade to 13 workers of 12 partitions: refused ({last_line(error)})")
    else:
        sys.exit("expected a refusal of worker.replicas=13")
    flags = helm.values(STEPS[0][1])
    helm.run("rollback", RELEASE, "1", "--no-hooks")
    expect_objects(server, helm, "rollback", expected_objects(helm, flags))
    print(helm.run("history", RELEASE).rstrip())
    helm.run("uninstall", RELEASE, "--no-hooks")
    expect_objects(server, helm, "uninstall", set())


def last_line(error):
    return str(error).splitlines()[-1] if "\n" not in str(error) else str(error).splitlines()[0]


def expected_objects(helm, flags):
    wanted = {kind for _, kind in KINDS}
    return {
        (one["kind"], one["metadata"]["name"])
        for one in helm.objects("--no-hooks", *flags)
        if one["kind"] in wanted
    }


def expect_objects(server, helm, action, expected):
    found = set()
    for api_version, kind in KINDS:
        found |= server.names(api_version, kind, helm.namespace)
    if found != expected:
        missing, more = sorted(expected - found), sorted(found - expected)
        sys.exit(f"{action}: the server lacks {missing}, and has {more} beyond the values")
    print(f"{action}: {len(found)} objects, as the values say")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Refused as refusal:
        sys.exit(f"the server or Helm refused: {refusal}")
