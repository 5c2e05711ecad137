"""The flows of an order, each with the requests and answers that a client sees."""

import json
import time
import urllib.error
import urllib.request

from show import Failed, check, say

OUTCOME_SECONDS = 30
# Long enough to see the order as RESERVED.
HOLD_SECONDS = 2


class Client:
    """Sends HTTP requests to ingest, and shows them with their answers."""

    def __init__(self, url):
        self.url = url

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as answer:
            return json.load(answer)

    def place(self, product, quantity, prefer=None, key=None):
        """Places an order for one product.

        Returns the status and the body of the answer. The body has `replayed` if ingest marked the
        answer as a replay.
        """
        body = json.dumps(
            {"reference": "demo", "lines": [{"product_id": product, "quantity": quantity}]}
        )
        own = {"Prefer": prefer, "Idempotency-Key": key}
        own = {name: value for name, value in own.items() if value}
        shown = "".join(f"{name}: {value}  " for name, value in own.items())
        say(f"   POST /v1/orders  {shown}{body}")
        headers = {"Content-Type": "application/json", **own}
        request = urllib.request.Request(
            f"{self.url}/v1/orders", body.encode(), headers, method="POST"
        )
        started = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                status, content, received = answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            status, content, received = error.code, json.load(error), error.headers
        milliseconds = (time.monotonic() - started) * 1000
        if received.get("Idempotent-Replayed") == "true":
            content["replayed"] = True
        wanted = {
            key: content[key]
            for key in ("order_id", "status", "order_status", "reason", "replayed")
            if content.get(key)
        }
        say(f"     -> {status} {json.dumps(wanted)}  after {milliseconds:.0f} ms")
        return status, content

    def await_status(self, order_id, status):
        """Returns the order once it has this status.

        Fails with `Failed` if it has another status after OUTCOME_SECONDS.
        """
        deadline = time.monotonic() + OUTCOME_SECONDS
        while True:
            order = self.get(f"/v1/orders/{order_id}")
            if order["status"] == status:
                reason = f', "reason": "{order["reason"]}"' if order.get("reason") else ""
                say(f'   GET /v1/orders/{order_id}\n     -> "status": "{status}"{reason}')
                return order
            if time.monotonic() > deadline:
                raise Failed(
                    f"order {order_id}: expected {status} after {OUTCOME_SECONDS} s,"
                    f" found {order['status']}"
                )
            time.sleep(0.02)


def synchronous(client, plenty, scarce):
    """The answer to the client is the outcome. Returns the id of the completed order."""
    status, order = client.place(plenty.id, 2, prefer="wait=10")
    check(
        (status, order["status"]) == (201, "COMPLETED"),
        "there was enough: the answer is 201 COMPLETED",
    )
    check(
        client.get(f"/v1/orders/{order['order_id']}")["status"] == "COMPLETED",
        "and GET says the same",
    )
    status, refused = client.place(scarce.id, scarce.available() + 1, prefer="wait=10")
    check(
        (status, refused.get("order_status"), refused.get("reason"))
        == (409, "FAILED", "INSUFFICIENT_STOCK"),
        "there was not enough: the answer is 409 INSUFFICIENT_STOCK",
    )
    check(
        client.get(f"/v1/orders/{refused['order_id']}")["status"] == "FAILED",
        "and GET says the same",
    )
    return order["order_id"]


def asynchronous(client, plenty, scarce):
    """The client is answered as soon as the order is durable. The outcome follows.

    Returns the id of the completed order.
    """
    status, order = client.place(plenty.id, 2)
    check(
        (status, order["status"]) == (202, "PENDING"), "the order is accepted at once: 202 PENDING"
    )
    client.await_status(order["order_id"], "COMPLETED")
    check(True, "there was enough: it became COMPLETED")
    status, refused = client.place(scarce.id, scarce.available() + 1)
    check(
        (status, refused["status"]) == (202, "PENDING"), "this one is accepted as well: 202 PENDING"
    )
    reason = client.await_status(refused["order_id"], "FAILED").get("reason")
    check(
        reason == "INSUFFICIENT_STOCK", "there was not enough: it became FAILED, INSUFFICIENT_STOCK"
    )
    return order["order_id"]


def late_failure(client, stocklock, completed, plenty):
    """A completed order fails downstream: it becomes FAILED, and its stock is released."""
    lines = client.get(f"/v1/orders/{completed}")["lines"]
    quantity = sum(line["quantity"] for line in lines)
    before = plenty.available()
    expected = before + quantity
    say(
        f"   product {plenty.id} has {before:,} available, and the completed order holds {quantity}"
    )
    say(f'   stocklock order fail {completed} --reason "payment declined"')
    stocklock("order", "fail", completed, "--reason", "payment declined")
    reason = client.await_status(completed, "FAILED").get("reason")
    check(reason == "payment declined", 'the order became FAILED, "payment declined"')
    await_stock({plenty: expected})
    check(True, f"its stock was released: {expected:,} available")


def await_stock(expected):
    """Waits until each product of `expected` has this many units.

    Fails with `Failed` if one has another number after OUTCOME_SECONDS.
    """
    deadline = time.monotonic() + OUTCOME_SECONDS
    for product, units in expected.items():
        while (found := product.available()) != units:
            if time.monotonic() > deadline:
                raise Failed(f"product {product.id}: expected {units:,} available, found {found:,}")
            time.sleep(0.05)


def held_and_confirmed(stocklock, basket):
    """A basket holds its stock. Then it is confirmed, and keeps the stock.

    `basket` has the quantity of each product.
    """
    after = {product: product.available() - units for product, units in basket.items()}
    order = _hold(stocklock, basket, "15m")
    held = {product: product.available() for product in basket}
    check(
        order["status"] == "RESERVED" and held == after,
        f"the order is RESERVED until {order.get('expires_at')}, and its stock is deducted",
    )
    confirmed = _order(stocklock, "confirm", order["order_id"])
    check(confirmed["status"] == "COMPLETED", "confirmed: the order is COMPLETED")
    repeated = _order(stocklock, "confirm", order["order_id"])
    check(
        repeated["status"] == "COMPLETED"
        and {product: product.available() for product in basket} == after,
        "confirmed again: nothing changes, and the order keeps its stock",
    )


def held_until_it_expires(stocklock, basket):
    """A basket holds its stock, and nobody confirms it: its stock is released."""
    before = {product: product.available() for product in basket}
    started = time.monotonic()
    order = _hold(stocklock, basket, f"{HOLD_SECONDS}s")
    say(f"   stocklock order watch {order['order_id']}")
    watched = stocklock.json_lines("order", "watch", order["order_id"])
    seconds = time.monotonic() - started
    for change in watched:
        say(f"     -> {json.dumps(_main_members(change))}")
    statuses = [change["status"] for change in watched]
    check(
        statuses == ["RESERVED", "CANCELLED"]
        and watched[-1].get("reason") == "EXPIRED"
        and seconds >= HOLD_SECONDS,
        f"nobody confirmed the order: after {seconds:.1f} s it was CANCELLED, EXPIRED",
    )
    await_stock(before)
    check(True, "its stock was released: all products have what they had before")


def _hold(stocklock, basket, hold):
    """Places the basket with a hold. Returns the answer."""
    lines = [f"{product.id}={units}" for product, units in basket.items()]
    return _order(stocklock, "place", *lines, "--hold", hold, "--wait", "10s")


def _order(stocklock, *arguments):
    """Runs `stocklock order …`, and shows it with its answer. Returns the answer."""
    say(f"   stocklock order {' '.join(arguments)}")
    answer = stocklock.json("order", *arguments)
    say(f"     -> {json.dumps(_main_members(answer))}")
    return answer


def _main_members(answer):
    names = ("order_id", "status", "reason", "expires_at")
    return {name: answer[name] for name in names if answer.get(name)}


def sent_twice(client, plenty):
    """A client sends one request twice, with one key: there is one order."""
    key, before = "demo-1", plenty.available()
    first_status, first = client.place(plenty.id, 3, key=key)
    second_status, second = client.place(plenty.id, 3, prefer="wait=10", key=key)
    check(
        (first_status, second_status, second["status"]) == (202, 201, "COMPLETED")
        and first["order_id"] == second["order_id"],
        "both requests received the id of one order",
    )
    check(
        not first.get("replayed") and second.get("replayed") is True,
        "and the second answer is marked as a replay",
    )
    check(plenty.available() == before - 3, "its stock was deducted once")
    status, other = client.place(plenty.id, 4, key=key)
    check(status == 422 and "order_id" not in other, "the same key with another order: 422")
