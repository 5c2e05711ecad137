"""What schemathesis has to know beyond the document.

schemathesis loads this module (SCHEMATHESIS_HOOKS).
"""

import hashlib
import itertools
import json
import os
import re
import time
import urllib.request
import uuid

import schemathesis

PREFER, KEY = "Prefer", "Idempotency-Key"
BARE_KEY = re.compile(r"[!#-~][!-~]{0,254}")
REQUEST_ID = re.compile(r"[!-~]{1,128}")
QUOTED_KEY = re.compile(r'"([!#-\[\]-~]|\\["\\]){1,255}"')
# Requests that depend on an order that holds its stock.
OF_HELD_ORDERS = ("/v1/orders/{id}/confirm", "/v1/orders/{id}/extend")
URL = os.environ["FUZZ_URL"]
TOKEN = os.environ["FUZZ_TOKEN"]
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
    """Makes the rare frequent: outcomes in answers, holds, reserved orders, keys, new ids."""
    turn = next(REQUESTS)
    is_odd = turn % 2 == 1
    documented = [parameter.name for parameter in case.operation.headers]
    if is_odd and PREFER in documented and PREFER not in case.headers:
        case.headers[PREFER] = "wait=2"
    if turn % 4 == 1 and isinstance(case.body, dict) and "lines" in case.body:
        case.body.setdefault("hold_seconds", HOLD_MAX_SECONDS)
    if is_odd and isinstance(case.body, dict) and _is_request_id(case.body.get("request_id")):
        case.body["request_id"] = _key_of(case.body)
    if is_odd and case.operation.path in OF_HELD_ORDERS and _version(case) is not None:
        case.path_parameters["id"] = _reserve()
    if KEY in documented and _is_valid(case.headers.get(KEY, "none" if turn % 8 == 3 else "")):
        key = _key_of(case.body)
        case.headers[KEY] = f'"{key}"' if is_odd else key
    # Only a UUIDv7 may be new. Of those that are known, half are kept: they are repetitions.
    if case.operation.method == "put" and _version(case) is not None:
        if is_odd or _version(case) != 7:
            case.path_parameters["id"] = str(_uuid_v7())


def _reserve():
    """Places an order that holds its stock. Returns its id."""
    # An adjustment may have taken the stock.
    stock = {"product_id": "sku-1", "set": 1_000_000, "reason": "count"}
    _post("/v1/stock/adjustments", {"request_id": str(_uuid_v7()), "adjustments": [stock]})
    line = {"product_id": "sku-1", "quantity": 1}
    order = {"lines": [line], "hold_seconds": HOLD_MAX_SECONDS}
    return _post("/v1/orders", order, {PREFER: "wait=10"})["order_id"]


def _post(path, body, headers=None):
    """Returns the body of the answer, which has status 200 to 299."""
    own = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    headers = {**own, **(headers or {})}
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _key_of(body):
    """A key or request id that only an equal request has."""
    return hashlib.sha256(repr(body).encode()).hexdigest()


def _is_valid(key):
    return BARE_KEY.fullmatch(key) or QUOTED_KEY.fullmatch(key)


def _is_request_id(value):
    return isinstance(value, str) and REQUEST_ID.fullmatch(value)


def _version(case):
    """The version of the UUID in the path, or 0 if it has another variant. None if it is none."""
    try:
        return uuid.UUID(case.path_parameters["id"]).version or 0
    except ValueError:
        return None


def _uuid_v7():
    """A new UUIDv7 (RFC 9562, section 5.7)."""
    millis = time.time_ns() // 1_000_000
    random = uuid.uuid4().int & ((1 << 80) - 1)
    bits = (millis << 80) | random
    bits = bits & ~(0xF << 76) | (7 << 76)
    return uuid.UUID(int=bits & ~(0x3 << 62) | (0x2 << 62))


@schemathesis.serializer("application/x-ndjson")
def write_lines(_context, value):
    """One line for each item. A value that is no array is one line."""
    items = value if isinstance(value, list) else [value]
    return "".join(json.dumps(item) + "\n" for item in items).encode()


@schemathesis.deserializer("application/x-ndjson")
def read_lines(_context, response):
    """The array of the lines."""
    return [json.loads(line) for line in response.content.splitlines()]
