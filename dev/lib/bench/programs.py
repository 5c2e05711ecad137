"""The programs that are measured. Only this file knows their command lines."""

import os
import pathlib
import re
import subprocess
import urllib.parse

import child
from show import Failed, say
from sql import Database

# The partitions of the topic of orders, for both programs.
PARTITIONS = 12
PEER_TIMEOUT_SECONDS = 3600
# Modes of the section `versions` that are values of --via.
WAYS = ("batch", "kafka")
# Names of processes. The database may run through a loader of its own, and then has its name.
SERVERS = {
    "database": {"mysqld", "mariadbd", "ld-linux-x86-64"},
    "Kafka": {"java"},
    "Redis": {"redis-server"},
}


class Stocklock:
    who = "stocklock"

    def __init__(self, binary, lab, logs, baskets):
        self.binary = binary
        self.lab = lab
        self.log = logs / "stocklock"
        self.baskets = baskets

    def version(self):
        return subprocess.run(
            [self.binary, "--version"], check=True, capture_output=True, text=True
        ).stdout.strip()

    def arguments(
        self,
        workload,
        strategy,
        orders,
        *,
        masters=None,
        batch_max=None,
        workers=1,
        rate=None,
        history=0,
        open_holds=0,
        identity="none",
        churn_seconds=None,
        end_to_end=False,
        ceiling=False,
    ):
        """The arguments as the report shows them. `run` fills in BASKETS and FIRST."""
        chosen = [
            "--strategy",
            strategy,
            "--orders",
            orders,
            "--fill",
            workload.fill,
            "--workers",
            workers,
        ]
        if workload.is_baskets:
            chosen += ["--baskets", "BASKETS"]
        else:
            chosen += [
                "--products",
                workload.products,
                "--zipf",
                workload.zipf,
                "--lines",
                f"1..{workload.max_lines}",
            ]
        if batch_max is not None:
            chosen += ["--batch-max", batch_max]
        if end_to_end or rate is not None:
            chosen += ["--mode", "end-to-end"]
        if rate is not None:
            chosen += ["--rate", rate]
        if history:
            chosen += ["--history", history]
        if open_holds:
            chosen += ["--open-holds", open_holds]
        if identity != "none":
            chosen += ["--identity", identity]
        if churn_seconds is not None:
            chosen += ["--churn", f"{churn_seconds}s"]
        if not ceiling:
            chosen.append("--skip-ceiling")
        settings = ["--set", f"topics.partitions={PARTITIONS}"]
        if masters == 1:
            settings += ["--set", "redis.urls=FIRST"]
        return [*settings, *map(str, chosen)]

    def run(self, arguments):
        command = [self.lab, "--binary", self.binary, *map(self._fill_in, arguments)]
        result = child.run(command, os.environ, self.log)
        if not result["verified"]:
            raise Failed(f"stocklock verify failed after the run: {result}")
        if "BASKETS" in arguments and result["lines"] != self.baskets.count_lines(result["orders"]):
            expected = self.baskets.count_lines(result["orders"])
            raise Failed(f"baskets: expected {expected} lines, found {result['lines']}")
        figure = "cpu_seconds_per_1000_orders_of_others"
        return {**result, figure: by_server(result[figure])}

    def _fill_in(self, argument):
        if argument == "BASKETS":
            return str(self.baskets.file)
        return argument.replace("FIRST", first_redis())

    @staticmethod
    def shown(arguments):
        return " ".join(["stocklock-lab", *arguments])


class HoldsLab:
    """Many short holds while the compensators die. The laboratory judges the run itself."""

    who = "stocklock"

    def __init__(self, binary, lab, logs):
        self.command = [lab, "--binary", binary]
        self.log = logs / "holds"

    @staticmethod
    def arguments(holds, kill_every_seconds):
        chosen = ["holds", "--holds", holds, "--kill-every", f"{kill_every_seconds}s"]
        return [*map(str, chosen), "--set", f"topics.partitions={PARTITIONS}"]

    def run(self, arguments):
        lab, *binary = self.command
        return child.run([lab, *arguments, *binary], os.environ, self.log)

    @staticmethod
    def shown(arguments):
        return " ".join(["stocklock-lab", *arguments])


class Version:
    """One version of stocklock, measured by its own `stocklock bench` on databases of its own.

    Another version's laboratory cannot measure it: events and tables may differ.
    """

    def __init__(self, who, binary, logs):
        self.who = who
        self.binary = binary
        self.log = logs / who

    def places_via(self, way):
        """Whether its bench places orders in this way."""
        described = subprocess.run(
            [self.binary, "bench", "--help"], check=True, capture_output=True, text=True
        )
        return re.search(rf"^\s*- {way}:", described.stdout, re.MULTILINE) is not None

    def arguments(self, workload, strategy, orders, *, mode):
        """In the modes `batch` and `kafka`, a version without them places one order a request."""
        chosen = ["--strategy", strategy, "--orders", orders, "--fill", workload.fill]
        chosen += ["--products", workload.products, "--zipf", workload.zipf]
        chosen += ["--lines", f"1..{workload.max_lines}"]
        chosen += ["--mode", "drain" if mode == "drain" else "end-to-end"]
        chosen += ["--via", mode] if mode in WAYS and self.places_via(mode) else []
        return ["--set", f"topics.partitions={PARTITIONS}", "bench", *map(str, chosen)]

    def run(self, arguments):
        stores = {
            key: Database(os.environ[key], f"bench_{key.split('__')[1].lower()}")
            for key in ("STOCKLOCK__ORDER_STORE__URL", "STOCKLOCK__STOCK_STORE__URL")
        }
        for store in stores.values():
            store.drop()
            store.create()
        env = {**os.environ, **{key: store.url for key, store in stores.items()}}
        result = child.run([self.binary, "--output", "json", *arguments], env, self.log)
        for store in stores.values():
            store.drop()
        if not result["verified"]:
            raise Failed(f"{self.who}: the verification failed after the run: {result}")
        return result

    def shown(self, arguments):
        return " ".join([f"stocklock-{self.who}", *arguments])


class Peer:
    who = "peer"

    def __init__(self, folder, logs, warmup):
        self.bench = str(pathlib.Path(folder) / "bench")
        self.log = logs / "peer"
        self.warmup = warmup
        self.baskets_file = None
        self.database = Database(os.environ["STOCKLOCK__ORDER_STORE__URL"], "bench_peer")
        self.database.create()

    def takes_baskets(self):
        described = subprocess.run(
            [self.bench, "--help"], check=True, capture_output=True, text=True
        )
        return "--load" in described.stdout

    def arguments(self, workload, strategy, orders):
        chosen = [
            "--mode",
            strategy,
            "--warmup",
            self.warmup,
            "--orders",
            orders,
            "--partitions",
            PARTITIONS,
        ]
        if workload.is_baskets:
            chosen += ["--load", "BASKETS"]
        else:
            chosen += [
                "--products",
                workload.products,
                "--zipf",
                workload.zipf,
                "--max-lines",
                workload.max_lines,
            ]
            chosen += ["--fill", workload.fill]
        return [*map(str, chosen), "--timeout", str(PEER_TIMEOUT_SECONDS)]

    def run(self, arguments):
        filled_in = [
            str(self.baskets_file) if argument == "BASKETS" else argument for argument in arguments
        ]
        command, env = [self.bench, *filled_in], {**os.environ, **self._servers()}
        try:
            result = child.run(command, env, self.log)
        except child.NoResult as failure:
            # The peer's seed sometimes waits two minutes for the broker, and gives up.
            say(f"   the peer printed no result, trying once more: {failure}")
            result = child.run(command, env, self.log)
        if not result["verified"]:
            raise Failed(f"the peer's own check failed after its run: {result}")
        return result

    def _servers(self):
        url = urllib.parse.urlsplit(self.database.url)
        jdbc_url = f"jdbc:mariadb://{url.hostname}:{url.port}{url.path}"
        return {
            "KAFKA_BOOTSTRAP": os.environ["STOCKLOCK__KAFKA__BROKERS"],
            "JDBC_URL": f"{jdbc_url}?allowPublicKeyRetrieval=true",
            "DB_USER": url.username,
            "DB_PASSWORD": url.password,
            "REDIS_URL": first_redis(),
        }

    @staticmethod
    def shown(arguments):
        return " ".join(["./bench", *arguments])


def by_server(cpu):
    """The CPU time of each server. All other programs share one figure, "anything else"."""
    found = {}
    for program, seconds in cpu.items():
        name = next(
            (name for name, programs in SERVERS.items() if program in programs), "anything else"
        )
        found[name] = found.get(name, 0) + seconds
    return found


def first_redis():
    return os.environ["STOCKLOCK__REDIS__URLS"].split(",")[0]
