"""Reads an order on both topics, and fails it, with the schemas of a registry.

usage: registered.py BROKERS REGISTRY ORDERS_TOPIC STATUS_TOPIC ORDER_ID

It prints each message of the order as JSON. It writes with a schema that has one more field.
"""

import json
import pathlib
import sys
import time

from confluent_kafka import DeserializingConsumer, SerializingProducer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import StringSerializer

brokers, registry, orders, statuses, order_id = sys.argv[1:]
client = SchemaRegistryClient({"url": registry})
consumer = DeserializingConsumer({
    "bootstrap.servers": brokers,
    "group.id": f"python-{order_id}",
    "auto.offset.reset": "earliest",
    "value.deserializer": AvroDeserializer(client),
})
consumer.subscribe([orders, statuses])
missing, deadline = {orders, statuses}, time.monotonic() + 30
while missing and time.monotonic() < deadline:
    message = consumer.poll(1)
    if message and not message.error() and message.key() == order_id.encode():
        print(json.dumps(message.value(), default=str))
        missing.discard(message.topic())
consumer.close()
if missing:
    sys.exit(f"no message of the order on {missing}")
grown = json.loads(pathlib.Path("schemas/order_status.avsc").read_text())
grown["fields"].insert(2, {"name": "till", "type": ["null", "string"], "default": None})
producer = SerializingProducer({
    "bootstrap.servers": brokers,
    "key.serializer": StringSerializer(),
    "value.serializer": AvroSerializer(client, json.dumps(grown)),
})
status = {"order_id": order_id, "status": "FAILED", "till": "7", "reason": "by Python"}
status |= {"source": "payments", "occurred_at": int(time.time() * 1000), "reference": None}
producer.produce(statuses, key=order_id, value=status)
sys.exit(1 if producer.flush(30) else 0)
