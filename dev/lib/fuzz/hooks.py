"""What schemathesis has to know beyond the document.

schemathesis loads this module (SCHEMATHESIS_HOOKS).
"""

import itertools
import json
import os
import time
import urllib.request
import uuid

import schemathesis

PREFER = "Prefer"
# Requests that depend on an order that holds its stock.
OF_HELD_ORDERS = ("/v1/orders/{id}/confirm", "/v1/orders/{id}/extend")
URL = os.environ["FUZZ_URL"]
HOLD_MAX_SECONDS = int(os.environ["FUZZ_HOLD_MAX_SECONDS"])
REQUESTS = itertools.count()


@schemathesis.hook
def before_load_schema(_context, document):
    """Narrows the requests to what this stack has: its products, and its longest hold."""
    schemas = document["components"]["schemas"]
    schemas["ProductId"] = {"type": "string", "enum": os.environ["FUZZ_PRODUCTS"].split(",")}
    schemas["HoldSeconds"]["maximum"] = HOLD_MAX_SECONDS


@schemathesis.hook
def before_call(_context, case, _kwargs):
    """Makes the rare frequent: outcomes in answers, holds, reserved orders, ids of the client."""
    turn = next(REQUESTS)
    is_odd = turn % 2 == 1
    documented = [parameter.name for parameter in case.operation.headers]
    if is_odd and PREFER in documented and PREFER not in case.headers:
        case.headers[PREFER] = "wait=2"
    if turn % 4 == 1 and isinstance(case.body, dict) and "lines" in case.body:
        case.body.setdefault("hold_seconds", HOLD_MAX_SECONDS)
    if is_odd and case.operation.path in OF_HELD_ORDERS:
        case.path_parameters["id"] = _reserve()
    if case.operation.method == "put" and _version(case.path_parameters["id"]) not in (None, 7):
        case.path_parameters["id"] = str(_uuid_v7())


def _reserve():
    """Places an order that holds its stock. Returns its id."""
    line = {"product_id": "sku-1", "quantity": 1}
    body = json.dumps({"lines": [line], "hold_seconds": HOLD_MAX_SECONDS})
    headers = {"Content-Type": "application/json", PREFER: "wait=10"}
    request = urllib.request.Request(f"{URL}/v1/orders", body.encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["order_id"]


def _version(text):
    """The version of a UUID, or None if the text is none."""
    try:
        return uuid.UUID(text).version
    except ValueError:
        return None


def _uuid_v7():
    """A new UUIDv7 (RFC 9562, section 5.7)."""
    millis = time.time_ns() // 1_000_000
    random = uuid.uuid4().int & ((1 << 80) - 1)
    bits = (millis << 80) | random
    bits = bits & ~(0xF << 76) | (7 << 76)
    return uuid.UUID(int=bits & ~(0x3 << 62) | (0x2 << 62))
