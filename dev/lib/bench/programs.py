"""The programs that are measured, and the only places that know their command lines."""

import os
import pathlib
import subprocess
import urllib.parse

import child
from show import Failed, say
from sql import Database

# Of both: the partitions of the topic that the orders come from.
PARTITIONS = 12
PEER_TIMEOUT_SECONDS = 3600
# Names of processes; a database that is run by a loader of its own bears that one's.
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
        churn_seconds=None,
        end_to_end=False,
        ceiling=False,
    ):
        """As in the report: what only this run can know has a name in capital letters."""
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
            raise Failed(f"not verified: {result}")
        if "BASKETS" in arguments and result["lines"] != self.baskets.count_lines(result["orders"]):
            raise Failed(f"other baskets than ours were left out: {result['lines']} lines")
        figure = "cpu_seconds_per_1000_orders_of_others"
        return {**result, figure: by_server(result[figure])}

    def _fill_in(self, argument):
        if argument == "BASKETS":
            return str(self.baskets.file)
        return argument.replace("FIRST", first_redis())

    @staticmethod
    def shown(arguments):
        return " ".join(["stocklock-lab", *arguments])


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
            # Its seed was seen to wait for the broker for two minutes and to give up.
            say(f"   the peer did not run, and is given one more try: {failure}")
            result = child.run(command, env, self.log)
        if not result["verified"]:
            raise Failed(f"the peer's run is not verified: {result}")
        return result

    def _servers(self):
        url = urllib.parse.urlsplit(self.database.url)
        return {
            "KAFKA_BOOTSTRAP": os.environ["STOCKLOCK__KAFKA__BROKERS"],
            "JDBC_URL": f"jdbc:mariadb://{url.hostname}:{url.port}{url.path}?allowPublicKeyRetrieval=true",
            "DB_USER": url.username,
            "DB_PASSWORD": url.password,
            "REDIS_URL": first_redis(),
        }

    @staticmethod
    def shown(arguments):
        return " ".join(["./bench", *arguments])


def by_server(cpu):
    """What belongs to none of our servers is one figure."""
    found = {}
    for program, seconds in cpu.items():
        name = next(
            (name for name, programs in SERVERS.items() if program in programs), "anything else"
        )
        found[name] = found.get(name, 0) + seconds
    return found


def first_redis():
    return os.environ["STOCKLOCK__REDIS__URLS"].split(",")[0]
