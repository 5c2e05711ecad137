"""Places orders, hears of them, fails them and follows the stock: see examples/README.md."""

import functools
import io
import json
import os
import pathlib
import sys
import time
import urllib.error
import urllib.request
import uuid

import fastavro
from confluent_kafka import Consumer, Producer
from fastavro.schema import fingerprint, to_parsing_canonical_form

SCHEMAS = pathlib.Path(__file__).parents[2] / "schemas"


@functools.cache
def load(name):
    """The schema of a file, and the 10 bytes before each of its values: C3 01, fingerprint."""
    schema = json.loads((SCHEMAS / f"{name}.avsc").read_text())
    hexadecimal = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    return fastavro.parse_schema(schema), b"\xc3\x01" + bytes.fromhex(hexadecimal)


@functools.cache
def registered(schema_id):
    """The schema that the registry has under an id."""
    url = f"{os.environ['SCHEMA_REGISTRY']}/schemas/ids/{schema_id}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return fastavro.parse_schema(json.loads(json.load(answer)["schema"]))


def encode(name, record):
    schema, header = load(name)
    value = io.BytesIO()
    fastavro.schemaless_writer(value, schema, record)
    return header + value.getvalue()


def decode(name, value):
    """Reads a value, whichever format stocklock is configured to write."""
    schema, header = load(name)
    if value.startswith(b"{"):
        return json.loads(value)
    if value.startswith(b"\0"):  # the framing of a schema registry: 00, id, datum
        writer = registered(int.from_bytes(value[1:5], "big"))
        return fastavro.schemaless_reader(io.BytesIO(value[5:]), writer, schema)
    if value.startswith(header):
        return fastavro.schemaless_reader(io.BytesIO(value[10:]), schema)
    raise ValueError(f"written with another schema: {value[:10].hex()}")


def read(brokers, topic, name):
    """Yields the values of a topic from its beginning, and None after each second without one."""
    # A service has one group for ever, and commits. So it reads each message once.
    group = f"example-{uuid.uuid4()}"
    settings = {"bootstrap.servers": brokers, "group.id": group, "auto.offset.reset": "earliest"}
    consumer = Consumer(settings)
    consumer.subscribe([topic])
    try:
        while True:
            message = consumer.poll(1)
            if message is None:
                yield None
            elif message.error():
                print(message.error(), file=sys.stderr)
            elif message.value() is not None:  # else a tombstone
                yield decode(name, message.value())
    finally:
        consumer.close()


def produce(brokers, topic, value, key=None, headers=None):
    """Returns once the brokers have the message."""
    failures = []
    producer = Producer({"bootstrap.servers": brokers, "partitioner": "murmur2_random"})
    note = lambda error, _message: failures.extend([error] if error else [])
    producer.produce(topic, value, key=key, headers=headers, on_delivery=note)
    if producer.flush(30) or failures:
        raise OSError(f"not produced: {failures}")


def show(record):
    print(json.dumps(record, default=str), flush=True)


def place_by_kafka(brokers, requests, statuses, product_id, quantity):
    """Places an order, and waits for its outcome. The reference is our own name of the order."""
    reference = f"example-{uuid.uuid4()}"
    lines = [{"product_id": product_id, "quantity": int(quantity)}]
    request = encode("order_request", {"reference": reference, "lines": lines})
    # With a key of its own, the request makes one order, however often it is produced.
    produce(brokers, requests, request, headers={"Idempotency-Key": reference})
    for status in read(brokers, statuses, "order_status"):
        if status and status["reference"] == reference:
            return show(status)


def place_by_http(url, product_id, quantity):
    """Sends a request twice, as a client does whose connection broke. It makes one order."""
    headers = {"Content-Type": "application/json", "Prefer": "wait=10"}
    headers["Idempotency-Key"] = str(uuid.uuid4())
    order = {"lines": [{"product_id": product_id, "quantity": int(quantity)}]}
    for _ in range(2):
        request = urllib.request.Request(f"{url}/v1/orders", json.dumps(order).encode(), headers)
        try:
            answer = urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as refusal:  # 409, for example: not enough stock
            answer = refusal
        replayed = answer.headers.get("Idempotent-Replayed") == "true"
        show({"code": answer.status, "replayed": replayed, **json.load(answer)})


def fail(brokers, statuses, order_id, reason):
    """Reports that an order failed late, and waits until its stock is released."""
    status = {"order_id": order_id, "status": "FAILED", "reason": reason, "source": "payments"}
    status["occurred_at"] = int(time.time() * 1000)
    produce(brokers, statuses, encode("order_status", status), key=order_id)
    for status in read(brokers, statuses, "order_status"):
        if status and str(status["order_id"]) == order_id:
            show(status)
            if status["status"] == "RELEASED":
                return


def follow_levels(brokers, topic, seconds):
    """Keeps the stock of each product. It ends after so many seconds without a message."""
    levels, silent = {}, 0
    for level in read(brokers, topic, "stock_level"):
        silent = 0 if level else silent + 1
        if silent == int(seconds):
            break
        # Messages may be repeated, and come out of order. The highest version is true.
        if level and level["version"] > levels.get(level["product_id"], {"version": 0})["version"]:
            levels[level["product_id"]] = level
    for level in levels.values():
        show(level)


command, *arguments = sys.argv[1:]
commands = [place_by_kafka, place_by_http, fail, follow_levels]
{each.__name__.replace("_", "-"): each for each in commands}[command](*arguments)
