"""The real baskets as one file for `stocklock order import`, which SIGKILL ends on the way."""

import contextlib
import os
import pathlib
import subprocess
import time

from program import Stocklock
from roles import Roles
from show import Failed
from sql import Database
from workloads import ALL_BASKETS

HERE = pathlib.Path(__file__).resolve().parent
STORES = ("STOCKLOCK__ORDER_STORE__URL", "STOCKLOCK__STOCK_STORE__URL")
FILE = "baskets.ndjson"
LOOK_SECONDS = 0.02
# The import fails if it saves no further order for this time.
STUCK_SECONDS = 120
LANES = ("orders", "order-status", "orders.dlq", "order-status.dlq")


class KilledImport:
    """Imports a file of baskets. An import that is killed starts again with the same file."""

    who = "stocklock"

    def __init__(self, binary, logs, folder):
        self.binary = binary
        self.logs = logs
        self.folder = folder

    @staticmethod
    def arguments(baskets, kills):
        return ["--baskets", str(baskets), "--kills", str(kills)]

    @staticmethod
    def shown(arguments):
        return " ".join(["order import", *arguments])

    def run(self, arguments):
        _, baskets, _, kills = arguments
        self._write_files(int(baskets))
        stores = [Database(os.environ[key], f"bench_import_{key.split('__')[1]}") for key in STORES]
        for store in stores:
            store.drop()
            store.create()
        logs = self.logs / f"import-{time.time():.0f}"
        logs.mkdir()
        roles = Roles(self.binary, self._env(stores, logs.name), logs)
        stocklock = Stocklock(self.binary, roles.env)
        stocklock.run("setup")
        stocklock.run("stock", "import", self.folder / "products.csv")
        with roles:
            result = self._import(stocklock, roles, int(baskets), int(kills), logs)
            result["saved"] = stores[0].count("SELECT COUNT(*) FROM orders")
            stocklock.run("verify", "--settle", "300s")
        self._require(result, int(baskets))
        for store in stores:
            store.drop()
        return {**result, "verified": True}

    def _write_files(self, baskets):
        """Writes the first baskets. If there are too few, they begin again."""
        orders = str(min(baskets, ALL_BASKETS))
        command = [HERE.parent / "baskets", "--orders", orders, "--out", self.folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        file = self.folder / FILE
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        with open(file, "a", encoding="utf-8") as more:
            more.writelines(lines[number % len(lines)] for number in range(len(lines), baskets))

    @staticmethod
    def _env(stores, name):
        settings = {key: store.url for key, store in zip(STORES, stores)}
        settings["STOCKLOCK__KAFKA__GROUP_ID"] = f"{name}-worker"
        settings["STOCKLOCK__COMPENSATOR__GROUP_ID"] = f"{name}-compensator"
        for topic in LANES:
            key = topic.replace("-", "_").replace(".", "_").upper()
            settings[f"STOCKLOCK__TOPICS__{key}"] = f"{name}.{topic}"
        return {**os.environ, **settings}

    def _import(self, stocklock, roles, baskets, kills, logs):
        began = time.monotonic()
        command = ["order", "import", self.folder / FILE]
        for kill in range(1, kills + 1):
            with open(logs / f"killed-{kill}", "w", encoding="utf-8") as log:
                client = stocklock.start(*command, stdout=subprocess.PIPE, stderr=log)
            with client:
                try:
                    self._wait_until_saved(roles, client, baskets * kill // (kills + 2))
                finally:
                    client.kill()
        summary = stocklock.json(*command)
        seconds = time.monotonic() - began
        counts = ("placed", "replayed", "invalid", "errors", "unplaced", "unknown")
        return {
            "lines": summary["read"],
            "orders": summary["placed"],
            "seconds": round(seconds, 3),
            "orders_per_s": round(summary["placed"] / seconds, 1),
            "kills": kills,
            "p50_ms": summary["p50_ms"],
            "p99_ms": summary["p99_ms"],
            "ingest_peak_mib": peak_mib(stocklock.binary, "ingest"),
            **{name: summary[name] for name in counts},
        }

    @staticmethod
    def _wait_until_saved(roles, client, orders):
        saved, changed = 0, time.monotonic()
        while saved < orders:
            if client.poll() is not None:
                raise Failed("the import ended before it was killed")
            labels = {"result": "accepted"}
            now = roles.metric("ingest", "stocklock_orders_ingested_total", **labels)
            if now > saved:
                saved, changed = now, time.monotonic()
            if time.monotonic() - changed > STUCK_SECONDS:
                raise Failed(f"{saved:,} orders are saved, and no further order")
            time.sleep(LOOK_SECONDS)

    @staticmethod
    def _require(result, baskets):
        """Fails with `Failed` unless each line is accounted for, and each order is saved once."""
        counted = sum(result[name] for name in ("placed", "invalid", "errors"))
        if not result["lines"] == counted == baskets:
            raise Failed(f"{baskets:,} lines, and the summary accounts for {counted:,}: {result}")
        if result["saved"] != result["placed"]:
            raise Failed(f"{result['saved']:,} orders are saved: {result}")


def peak_mib(binary, role):
    """The most memory that the process of a role had, in MiB. Fails if there is not one process."""
    command, found = [str(binary), role], []
    for folder in pathlib.Path("/proc").iterdir():
        # A process may end meanwhile.
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().decode().split("\0")[:2] == command:
                status = (folder / "status").read_text(encoding="utf-8")
                found += [line for line in status.splitlines() if line.startswith("VmHWM:")]
    if len(found) != 1:
        raise Failed(f"{role}: expected one process, found {len(found)}")
    return round(int(found[0].split()[1]) / 1024, 1)
