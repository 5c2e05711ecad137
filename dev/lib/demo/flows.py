"""The flows of an order, each with the requests and answers that a client sees."""

import json
import time
import urllib.error
import urllib.request

from show import Failed, check, say

OUTCOME_SECONDS = 30


class Client:
    """Sends HTTP requests to ingest, and shows them with their answers."""

    def __init__(self, url):
        self.url = url

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as answer:
            return json.load(answer)

    def place(self, product, quantity, prefer=None):
        """Places an order for one product. Returns the status and the body of the answer."""
        body = json.dumps(
            {"reference": "demo", "lines": [{"product_id": product, "quantity": quantity}]}
        )
        headers = {"Content-Type": "application/json"}
        if prefer:
            headers["Prefer"] = prefer
        say(f"   POST /v1/orders  {f'Prefer: {prefer}  ' if prefer else ''}{body}")
        request = urllib.request.Request(
            f"{self.url}/v1/orders", body.encode(), headers, method="POST"
        )
        started = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                status, content = answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            status, content = error.code, json.load(error)
        milliseconds = (time.monotonic() - started) * 1000
        wanted = {
            key: content[key]
            for key in ("order_id", "status", "order_status", "reason")
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
    deadline = time.monotonic() + OUTCOME_SECONDS
    while plenty.available() != expected:
        if time.monotonic() > deadline:
            raise Failed(
                f"product {plenty.id}: expected {expected:,} available,"
                f" found {plenty.available():,}"
            )
        time.sleep(0.05)
    check(True, f"its stock was released: {expected:,} available")
