"""Reads an order's messages on both topics, then reports that the order failed.

usage: fail_order.py BROKERS ORDERS_TOPIC STATUS_TOPIC ORDER_ID REASON
"""

import datetime
import io
import json
import pathlib
import sys

import fastavro.schema
from confluent_kafka import Consumer, Producer


def load(name):
    """A schema, and what its values begin with in Avro's single-object encoding."""
    path = pathlib.Path(__file__).parents[2] / "schemas" / f"{name}.avsc"
    schema = json.loads(path.read_text())
    canonical_form = fastavro.schema.to_parsing_canonical_form(schema)
    fingerprint = fastavro.schema.fingerprint(canonical_form, "CRC-64-AVRO")
    return fastavro.parse_schema(schema), b"\xc3\x01" + bytes.fromhex(fingerprint)


brokers, orders, statuses, order_id, reason = sys.argv[1:]
schemas = {orders: load("order_event"), statuses: load("order_status")}
group = {
    "group.id": f"example-{order_id}",
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
}
consumer = Consumer({"bootstrap.servers": brokers, **group})
consumer.subscribe([orders, statuses])
missing = {orders, statuses}
while missing:
    message = consumer.poll(30)
    if message is None or message.error():
        sys.exit(f"no message of the order: {message and message.error()}")
    schema, header = schemas[message.topic()]
    if message.key() == order_id.encode() and (message.value() or b"").startswith(header):
        value = fastavro.schemaless_reader(io.BytesIO(message.value()[10:]), schema)
        print(json.dumps(value, default=str))
        missing.discard(message.topic())
consumer.close()

schema, header = schemas[statuses]
now = datetime.datetime.now(datetime.timezone.utc)
status = {
    "order_id": order_id,
    "status": "FAILED",
    "reason": reason,
    "source": "example",
    "occurred_at": now,
}
value = io.BytesIO()
value.write(header)
fastavro.schemaless_writer(value, schema, status)
producer = Producer({"bootstrap.servers": brokers, "partitioner": "murmur2_random"})
producer.produce(statuses, key=order_id, value=value.getvalue())
sys.exit(1 if producer.flush(30) else 0)
