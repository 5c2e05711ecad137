"""Reads an order on both topics in single-object encoding, then fails it.

usage: fail_order.py BROKERS ORDERS_TOPIC STATUS_TOPIC ORDER_ID REASON
"""

import io
import json
import pathlib
import sys
import time

import fastavro
import fastavro.schema
from confluent_kafka import Consumer, Producer


def load(name):
    """The schema, and the 10 bytes before each value in Avro's single-object encoding."""
    schema = json.loads(pathlib.Path("schemas", f"{name}.avsc").read_text())
    canonical_form = fastavro.schema.to_parsing_canonical_form(schema)
    fingerprint = fastavro.schema.fingerprint(canonical_form, "CRC-64-AVRO")
    return fastavro.parse_schema(schema), b"\xc3\x01" + bytes.fromhex(fingerprint)


brokers, orders, statuses, order_id, reason = sys.argv[1:]
schemas = {orders: load("order_event"), statuses: load("order_status")}
consumer = Consumer({
    "bootstrap.servers": brokers,
    "group.id": f"python-{order_id}",
    "auto.offset.reset": "earliest",
})
consumer.subscribe([orders, statuses])
missing, deadline = {orders, statuses}, time.monotonic() + 30
while missing and time.monotonic() < deadline:
    message = consumer.poll(1)
    if message and not message.error() and message.key() == order_id.encode():
        schema, header = schemas[message.topic()]
        if (message.value() or b"").startswith(header):
            datum = io.BytesIO(message.value()[len(header):])
            print(json.dumps(fastavro.schemaless_reader(datum, schema), default=str))
            missing.discard(message.topic())
consumer.close()
schema, header = schemas[statuses]
status = {"order_id": order_id, "status": "FAILED", "reason": reason, "source": "payments"}
status["occurred_at"] = int(time.time() * 1000)
value = io.BytesIO()
fastavro.schemaless_writer(value, schema, status)
producer = Producer({"bootstrap.servers": brokers, "partitioner": "murmur2_random"})
producer.produce(statuses, key=order_id, value=header + value.getvalue())
sys.exit(1 if missing or producer.flush(30) else 0)
