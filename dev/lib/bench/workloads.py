"""The standard workloads, and the files that carry the real baskets to each program."""

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
# Enough to have so many valid ones among them: one in 24 is not.
SPARE = 1.06


@dataclass(frozen=True)
class Workload:
    name: str
    what: str
    # The share of the demand that the stock can serve.
    fill: float
    # Unused with baskets.
    products: int = 0
    zipf: float = 0.0
    max_lines: int = 0

    @property
    def is_baskets(self):
        return self.products == 0


# Of baskets, a share of the demand would be rounded down to nothing for all products that are asked for once, and every
# other basket would be refused.
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
    """As ingest sees it."""
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
        """The same first orders, after others to warm up, as `--load` takes them: products are numbered from 1 in the
        order of their ids, and a product that is repeated is one demand. The stock suffices."""
        chosen = self.valid[orders : orders + warmup] + self.valid[:orders]
        if len(chosen) < warmup + orders:
            raise Failed(
                f"there are only {len(self.valid):,} valid baskets, too few for the peer: see --peer-orders"
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
