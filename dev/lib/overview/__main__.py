"""Draws docs/pictures/overview.svg: the dashboard Overview under load, from real data.

usage: dev/stack exec --database mysql -- python3 dev/lib/overview --binary FILE [--minutes N]

Starts ingest, two workers and a compensator on the servers of the stack, and a Prometheus server
that scrapes them. Clients place orders over HTTP. After half of the time the workers are frozen for
20 s, as a pause of their machine would do. At the end the script asks Prometheus the queries of
helm/stocklock/dashboards/overview.json, and draws their answers with the titles and units of the
panels. It stops everything that it started.
"""

import argparse
import contextlib
import http.client
import json
import math
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass

import svg

ROOT = pathlib.Path(__file__).parents[3]
DASHBOARD = ROOT / "helm/stocklock/dashboards/overview.json"
PICTURE = ROOT / "docs/pictures/overview.svg"
ROLES = (
    ("ingest", "ingest"),
    ("worker", "worker-0"),
    ("worker", "worker-1"),
    ("compensator", "compensator"),
)
CLIENTS, PRODUCTS = 24, 1_000
# One product of so many is sold out.
SOLD_OUT_EVERY = 50
WARM_UP_SECONDS = 30
FROZEN_SECONDS, READY_SECONDS, STEP_SECONDS = 20, 120, 3


@dataclass(frozen=True)
class Series:
    name: str
    # Pairs of a Unix time and a value.
    points: list


@dataclass(frozen=True)
class RunningRole:
    job: str
    process: subprocess.Popen
    http: str
    admin: str


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def settings():
    """The settings of the roles: locks by Redlock, and a database that this script alone uses."""
    return os.environ | {"STOCKLOCK__LOCK__STRATEGY": "redlock", "STOCKLOCK__LOG__FORMAT": "json"}


def start(stack, command, env, log):
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def stop():
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)
    return process


def await_answer(url):
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{url} does not answer: {error}")
        time.sleep(0.2)


def start_roles(stack, binary, folder):
    roles = []
    for job, name in ROLES:
        listen, admin = free_address(), free_address()
        env = settings() | {"STOCKLOCK__HTTP__LISTEN": listen, "STOCKLOCK__ADMIN__LISTEN": admin}
        log = stack.enter_context(open(folder / f"{name}.log", "wb"))
        roles.append(RunningRole(job, start(stack, [binary, job], env, log), listen, admin))
    for role in roles:
        await_answer(f"http://{role.admin}/readyz")
    return roles


def start_prometheus(stack, roles, folder):
    jobs = "\n".join(
        f"- {{job_name: {job}, static_configs: [{{targets: ["
        + ", ".join(f'"{role.admin}"' for role in roles if role.job == job)
        + "]}]}"
        for job in dict.fromkeys(role.job for role in roles)
    )
    config = folder / "prometheus.yml"
    config.write_text(f"global: {{scrape_interval: 1s}}\nscrape_configs:\n{jobs}\n")
    address = free_address()
    log = stack.enter_context(open(folder / "prometheus.log", "wb"))
    command = [
        os.environ["STOCKLOCK_TEST_PROMETHEUS"],
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    start(stack, command, os.environ, log)
    await_answer(f"http://{address}/-/ready")
    return address


def place_orders(address, seed, until, pause):
    """One client: it places orders until a time, with random pauses."""
    chance, connection = random.Random(seed), http.client.HTTPConnection(address, timeout=30)
    while time.time() < until:
        products = chance.sample(range(PRODUCTS), chance.randint(1, 3))
        lines = [{"product_id": f"p{product}", "quantity": 1} for product in products]
        body = json.dumps({"lines": lines})
        try:
            connection.request("POST", "/v1/orders", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection.close()
        time.sleep(chance.expovariate(1 / pause))


def drive(roles, minutes):
    """Places orders, and freezes the workers for a while after half of the time."""
    begin = time.time() + WARM_UP_SECONDS
    end = begin + 60 * minutes
    address = roles[0].http
    clients = [
        threading.Thread(target=place_orders, args=(address, seed, end, 0.08))
        for seed in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    time.sleep(WARM_UP_SECONDS + 30 * minutes)
    workers = [role.process for role in roles if role.job == "worker"]
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
    for client in clients:
        client.join()
    return begin, end


def ask(address, query, begin, end):
    arguments = {"query": query, "start": begin, "end": end, "step": STEP_SECONDS}
    url = f"http://{address}/api/v1/query_range?{urllib.parse.urlencode(arguments)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]["result"]


def with_variables(query):
    """The query, as Grafana sends it when all namespaces, jobs and pods are selected."""
    jobs = "|".join(dict.fromkeys(job for job, _ in ROLES))
    values = {"$namespace": ".*", "$job": jobs, "$pod": ".*", "$__rate_interval": "15s"}
    for variable, value in values.items():
        query = query.replace(variable, value)
    return query


def series_of(address, panel, begin, end):
    found = []
    for target in panel["targets"]:
        for result in ask(address, with_variables(target["expr"]), begin, end):
            name = target["legendFormat"]
            for label, value in result["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            values = dict((float(at), float(value)) for at, value in result["values"])
            steps = range(int((end - begin) // STEP_SECONDS) + 1)
            times = [begin + STEP_SECONDS * step for step in steps]
            near = {round(at - begin): value for at, value in values.items()}
            points = [(at, near.get(round(at - begin), math.nan)) for at in times]
            found.append(Series(name, points))
    return sorted(found, key=lambda series: series.name) if len(panel["targets"]) == 1 else found


def prepare(binary, folder):
    stock = folder / "products.csv"
    units = [100_000 if product % SOLD_OUT_EVERY else 0 for product in range(PRODUCTS)]
    rows = [f"p{product},product {product},{units}" for product, units in enumerate(units)]
    stock.write_text("product_id,name,available\n" + "\n".join(rows) + "\n")
    for command in (["setup"], ["stock", "import", str(stock)]):
        subprocess.run([binary, *command], env=settings(), check=True, stdout=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--minutes", type=int, default=5)
    options = parser.parse_args()
    dashboard = json.loads(DASHBOARD.read_text())
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(options.binary, folder)
        roles = start_roles(stack, options.binary, folder)
        address = start_prometheus(stack, roles, folder)
        begin, end = drive(roles, options.minutes)
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        answers = {panel["id"]: series_of(address, panel, begin, end) for panel in panels}
    PICTURE.write_text(svg.picture(dashboard, answers, begin, end))
    print(f"{PICTURE}: drawn")


if __name__ == "__main__":
    main()
