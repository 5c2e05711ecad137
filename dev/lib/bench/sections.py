"""The runs of each section of the report, and their order.

A round runs every case once. So a change on the machine meets all cases, not a single one.
"""

import math
import statistics
from dataclasses import dataclass, field

from importing import KilledImport
from programs import HoldsLab, Peer, Stocklock, Version
from workloads import ALL_BASKETS, WORKLOADS

STRATEGIES = ("row", "redlock")
# The strategy, and the number of Redis masters; None means all of them.
VARIANTS = {"row": ("row", None), "redlock": ("redlock", None), "redlock-1": ("redlock", 1)}
BATCH_SIZES = (1, 10, 100, 1000, 4000)
# A run of small batches is long enough with fewer orders.
ORDERS_FOR_SIZE = 10_000
SMALL_AND_DEFAULT = (1, 4000)
WORKERS = (1, 2, 4, 8)
# At these loads, the bare pipeline is measured too.
LOADS_BESIDE_BARE = ("alone", "50%")
LOAD_SHARES = (0.10, 0.25, 0.50, 0.75, 0.90)
BIG_ORDERS = 1_000_000
BIG_HISTORY = 10_000_000
BIG_HOLDS = 1_000_000
# How ingest would know a repeated request again.
IDENTITIES = ("none", "key", "order-id")
MODES = ("drain", "end-to-end")
VERSION_MODES = (*MODES, "batch", "kafka")
# How often an import is killed on its way.
KILLS = (0, 3)
CHURN_RATE, CHURN_WORKERS = 300, 4


@dataclass(frozen=True)
class Sizes:
    """The sizes of the runs."""

    runs: int
    orders: int
    peer_orders: int
    memory_orders: int
    # Orders that are in the stores before a run of the section `history`.
    history: int
    # Holds that are open during a run of the section `holds`.
    open_holds: int
    # Holds of a run of the section `expiry`, and the time between two kills.
    short_holds: int
    kill_every_seconds: int
    # The length of a run of the section `churn`, and the time between two changes.
    churn_seconds: int
    churn_interval_seconds: int
    # Baskets of a run of the section `imports`.
    imported_baskets: int
    # The length of a run at a fixed rate.
    load_seconds: int
    # The load at which an order meets no other order: orders a second, and orders of a run.
    alone_rate: int
    alone_orders: int

    @classmethod
    def of(cls, options):
        short = options.quick
        return cls(
            runs=options.runs,
            orders=options.orders,
            peer_orders=options.peer_orders,
            memory_orders=BIG_ORDERS if options.big else options.orders,
            history=BIG_HISTORY if options.big else options.orders,
            open_holds=BIG_HOLDS if options.big else options.orders,
            short_holds=1_000 if short else 100_000,
            kill_every_seconds=2 if short else 20,
            churn_seconds=20 if short else 600,
            churn_interval_seconds=5,
            imported_baskets=20_000 if short else BIG_ORDERS if options.big else ALL_BASKETS,
            load_seconds=3 if short else 30,
            alone_rate=10,
            alone_orders=15 if short else 200,
        )


@dataclass(frozen=True)
class Step:
    """One run."""

    program: Stocklock | HoldsLab | KilledImport | Peer | Version
    arguments: list
    labels: dict = field(default_factory=dict)


class Plan:
    """Makes the steps of each section, and has `carry_out` run them."""

    def __init__(self, sizes, programs, both_versions, carry_out):
        self.sizes = sizes
        self.stocklock = programs["stocklock"]
        self.holds_lab = programs["holds_lab"]
        self.killed_import = programs["killed_import"]
        self.peer = programs["peer"]
        # This version and an earlier one, for the section `versions`.
        self.both_versions = both_versions
        # A function that runs a list of steps, and returns their records.
        self.carry_out = carry_out

    def measure(self, section):
        return getattr(self, section)()

    def drain(self):
        return self.carry_out(
            [
                step
                for number in self._rounds()
                for workload in WORKLOADS.values()
                for strategy in STRATEGIES
                for step in self._side_by_side(number, workload, strategy)
            ]
        )

    def _side_by_side(self, number, workload, strategy):
        """The runs of stocklock, then the peer's. The run with `row` measures the ceiling too."""
        for variant, (of_strategy, masters) in VARIANTS.items():
            if of_strategy == strategy:
                yield self._ours(
                    {"round": number, "workload": workload.name, "variant": variant},
                    strategy,
                    self._available(workload),
                    masters=masters,
                    ceiling=variant == "row",
                )
        if self.peer and (not workload.is_baskets or self.peer.baskets_file):
            labels = {
                "round": number,
                "who": "peer",
                "workload": workload.name,
                "variant": strategy,
            }
            yield Step(
                self.peer, self.peer.arguments(workload, strategy, self.sizes.peer_orders), labels
            )

    def batch(self):
        cases = [("Z", strategy, size) for size in BATCH_SIZES for strategy in STRATEGIES]
        cases += [(workload, "row", size) for workload in ("U", "H") for size in SMALL_AND_DEFAULT]
        return self.carry_out(
            [
                self._ours(
                    {"round": number, "workload": workload, "variant": strategy, "batch_max": size},
                    strategy,
                    min(self.sizes.orders, ORDERS_FOR_SIZE * size),
                    batch_max=size,
                )
                for number in self._rounds()
                for workload, strategy, size in cases
            ]
        )

    def workers(self):
        return self.carry_out(
            [
                self._ours(
                    {"round": number, "workload": "Z", "variant": strategy, "workers": workers},
                    strategy,
                    self.sizes.orders,
                    workers=workers,
                )
                for number in self._rounds()
                for workers in WORKERS
                for strategy in STRATEGIES
            ]
        )

    def latency(self):
        """First the rate of a closed loop, then open loops at shares of that rate."""
        capacity = self.carry_out(
            [
                self._ours(
                    {"round": number, "workload": "Z", "variant": strategy, "load": "capacity"},
                    strategy,
                    self.sizes.orders,
                    end_to_end=True,
                )
                for number in self._rounds()
                for strategy in STRATEGIES
            ]
        )
        loads = []
        for strategy in STRATEGIES:
            rates = [
                run["result"]["orders_per_s"]
                for run in capacity
                if run["labels"]["variant"] == strategy
            ]
            whole = statistics.median(rates)
            loads.append((strategy, "alone", self.sizes.alone_rate, self.sizes.alone_orders))
            for share in LOAD_SHARES:
                rate = max(1, round(whole * share))
                loads.append(
                    (strategy, f"{share:.0%}", rate, math.ceil(rate * self.sizes.load_seconds))
                )
        return capacity + self.carry_out(
            [
                self._ours(
                    {
                        "round": number,
                        "workload": "Z",
                        "variant": strategy,
                        "load": load,
                        "rate": rate,
                    },
                    strategy,
                    orders,
                    rate=rate,
                    ceiling=load in LOADS_BESIDE_BARE,
                )
                for number in self._rounds()
                for strategy, load, rate, orders in loads
            ]
        )

    def memory(self):
        """From a backlog, and over HTTP with a quarter of the orders, since HTTP is slower.

        Only the run over HTTP has the memory of ingest.
        """
        cases = [("backlog", strategy, self.sizes.memory_orders) for strategy in STRATEGIES]
        cases.append(("HTTP", "row", self.sizes.memory_orders // 4))
        return self.carry_out(
            [
                self._ours(
                    {"round": number, "workload": "Z", "variant": strategy, "source": source},
                    strategy,
                    orders,
                    end_to_end=source == "HTTP",
                )
                for number in self._rounds()
                for source, strategy, orders in cases
            ]
        )

    def history(self):
        return self.carry_out(
            [
                self._ours(
                    {"round": number, "workload": "Z", "variant": "row", "history": history},
                    "row",
                    self.sizes.orders,
                    history=history,
                )
                for number in self._rounds()
                for history in (0, self.sizes.history)
            ]
        )

    def identity(self):
        return self.carry_out(
            [
                self._ours(
                    {"round": number, "workload": "Z", "variant": "row", "identity": identity},
                    "row",
                    self.sizes.orders,
                    identity=identity,
                    end_to_end=True,
                )
                for number in self._rounds()
                for identity in IDENTITIES
            ]
        )

    def holds(self):
        return self.carry_out(
            [
                self._ours(
                    {
                        "round": number,
                        "workload": "Z",
                        "variant": "row",
                        "mode": mode,
                        "open_holds": count,
                    },
                    "row",
                    self.sizes.orders,
                    end_to_end=mode == "end-to-end",
                    open_holds=count,
                )
                for number in self._rounds()
                for mode in MODES
                for count in (0, self.sizes.open_holds)
            ]
        )

    def expiry(self):
        arguments = self.holds_lab.arguments(
            self.sizes.short_holds, self.sizes.kill_every_seconds
        )
        labels = {"who": "stocklock", "kill_every_s": self.sizes.kill_every_seconds}
        return self.carry_out(
            [
                Step(self.holds_lab, arguments, {"round": number, **labels})
                for number in self._rounds()
            ]
        )

    def imports(self):
        return self.carry_out(
            [
                Step(
                    self.killed_import,
                    self.killed_import.arguments(self.sizes.imported_baskets, kills),
                    {"round": number, "who": "stocklock", "kills": kills},
                )
                for number in self._rounds()
                for kills in KILLS
            ]
        )

    def versions(self):
        workload = WORKLOADS["Z"]
        return self.carry_out(
            [
                Step(
                    version,
                    version.arguments(workload, "row", self.sizes.orders, mode=mode),
                    {"round": number, "workload": "Z", "mode": mode, "who": version.who},
                )
                for number in self._rounds()
                for mode in VERSION_MODES
                for version in self.both_versions
            ]
        )

    def churn(self):
        return self.carry_out(
            [
                self._ours(
                    {
                        "round": number,
                        "workload": "Z",
                        "variant": strategy,
                        "rate": CHURN_RATE,
                        "every_s": self.sizes.churn_interval_seconds,
                    },
                    strategy,
                    CHURN_RATE * self.sizes.churn_seconds,
                    workers=CHURN_WORKERS,
                    rate=CHURN_RATE,
                    churn_seconds=self.sizes.churn_interval_seconds,
                )
                for number in self._rounds()
                for strategy in STRATEGIES
            ]
        )

    def _rounds(self):
        return range(1, self.sizes.runs + 1)

    def _available(self, workload):
        if workload.is_baskets:
            return min(self.sizes.orders, len(self.stocklock.baskets.valid))
        return self.sizes.orders

    def _ours(self, labels, strategy, orders, **how):
        workload = WORKLOADS[labels["workload"]]
        arguments = self.stocklock.arguments(workload, strategy, orders, **how)
        return Step(self.stocklock, arguments, {**labels, "who": "stocklock"})
