"""The standard workloads, and the files with the real baskets for each program."""

import collections
import json
import math
import pathlib
import subprocess
from dataclasses import dataclass

from show import Failed

HERE = pathlib.Path(__file__).resolve().parent
MAX_LINES = 100
ALL_BASKETS = 155_848
# The number of baskets to read for one valid basket. About one basket in 24 is not valid.
SPARE = 1.06


@dataclass(frozen=True)
class Workload:
    name: str
    what: str
    # The share of the demand that the stock serves, from 0 to 1.
    fill: float
    # Unused if the orders are baskets.
    products: int = 0
    zipf: float = 0.0
    max_lines: int = 0

    @property
    def is_baskets(self):
        return self.products == 0


# For baskets, the stock serves the whole demand. A share of it would be rounded down to 0 for every
# product with a demand of one unit, and every other basket would be refused.
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("U", "1,000 products, uniform, 1 to 3 lines", 0.95, 1000, 0.0, 3),
        Workload("Z", "1,000 products, zipf 1.0, 1 to 3 lines", 0.95, 1000, 1.0, 3),
        Workload("H", "10 hot products, zipf 1.2, 1 to 3 lines", 0.95, 10, 1.2, 3),
        Workload("J", "real shopping baskets, 9.4 lines on average; the stock suffices", 1.0),
    )
}


def is_valid(order):
    """Whether ingest accepts the order."""
    return 1 <= len(order["lines"]) <= MAX_LINES and all(
        line["quantity"] >= 1 for line in order["lines"]
    )


class Baskets:
    """The first baskets that are valid orders."""

    def __init__(self, folder, wanted):
        placed = min(math.ceil(wanted * SPARE) + MAX_LINES, ALL_BASKETS)
        subprocess.run(
            [HERE.parent / "baskets", "--orders", str(placed), "--out", folder], check=True
        )
        self.file = folder / "baskets.ndjson"
        with open(self.file, encoding="utf-8") as lines:
            orders = [json.loads(line) for line in lines]
        self.valid = [order["lines"] for order in orders if is_valid(order)]
        self.peer_file = folder / "peer.jsonl"

    def count_lines(self, orders):
        return sum(len(lines) for lines in self.valid[:orders])

    def write_for_peer(self, warmup, orders):
        """Writes the file for the peer's option `--load`, and returns its path.

        The orders to warm up come first, then the same first orders as in `self.file`. Products are
        numbered from 1 in the order of their ids. A repeated product is one demand. The stock
        suffices. Fails with `Failed` if there are too few valid baskets.
        """
        chosen = self.valid[orders : orders + warmup] + self.valid[:orders]
        if len(chosen) < warmup + orders:
            raise Failed(
                f"the peer needs {warmup + orders:,} valid baskets, found {len(self.valid):,}:"
                " lower --peer-orders"
            )
        ids = sorted({line["product_id"] for lines in chosen for line in lines}, key=int)
        numbers = {product: number for number, product in enumerate(ids, start=1)}
        stock = [0] * len(ids)
        with open(self.peer_file, "w", encoding="utf-8") as file:
            orders_text = []
            for order_id, lines in enumerate(chosen, start=1):
                demand = collections.Counter()
                for line in lines:
                    demand[numbers[line["product_id"]]] += line["quantity"]
                for number, quantity in demand.items():
                    stock[number - 1] += quantity
                events = [
                    {"productId": number, "quantity": quantity}
                    for number, quantity in sorted(demand.items())
                ]
                orders_text.append(json.dumps({"orderId": order_id, "lines": events}) + "\n")
            file.write(json.dumps({"stock": stock}) + "\n")
            file.writelines(orders_text)
        return self.peer_file
