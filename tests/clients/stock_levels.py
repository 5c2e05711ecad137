"""Reads a topic of stock levels to its end, and keeps the highest version of each product.

usage: stock_levels.py BROKERS TOPIC SCHEMAS

SCHEMAS is the folder with `stock_level.avsc`, or the URL of a schema registry. It prints a JSON
object with the version and the available units of each product.
"""

import io
import json
import pathlib
import sys
import time

import fastavro
import fastavro.schema as avro
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer

OFFSET_BEGINNING = -2


def reader_of_files(folder):
    """Reads single-object encoding: a header of 10 bytes, which names the schema."""
    schema = json.loads(pathlib.Path(folder, "stock_level.avsc").read_text())
    fingerprint = avro.fingerprint(avro.to_parsing_canonical_form(schema), "CRC-64-AVRO")
    header, parsed = b"\xc3\x01" + bytes.fromhex(fingerprint), fastavro.parse_schema(schema)

    def read(value):
        if not value.startswith(header):
            sys.exit(f"not a stock level: {value.hex()}")
        return fastavro.schemaless_reader(io.BytesIO(value[len(header):]), parsed)

    return read


def reader_of_registry(url):
    deserialize = AvroDeserializer(SchemaRegistryClient({"url": url}))
    return lambda value: deserialize(value, None)


brokers, topic, schemas = sys.argv[1:]
read = reader_of_registry(schemas) if "://" in schemas else reader_of_files(schemas)
consumer = Consumer({
    "bootstrap.servers": brokers, "group.id": f"levels-{topic}", "enable.auto.commit": False,
})
partitions = [
    TopicPartition(topic, number, OFFSET_BEGINNING)
    for number in consumer.list_topics(topic, timeout=10).topics[topic].partitions
]
ends = {
    partition.partition: consumer.get_watermark_offsets(partition, timeout=10)[1]
    for partition in partitions
}
unread = {number for number, end in ends.items() if end > 0}
consumer.assign(partitions)
known, deadline = {}, time.monotonic() + 30
while unread and time.monotonic() < deadline:
    message = consumer.poll(1)
    if message is None or message.error():
        continue
    level = read(message.value())
    if level["version"] >= known.get(level["product_id"], level)["version"]:
        known[level["product_id"]] = level
    # The last record of a partition is never compacted away.
    if message.offset() + 1 >= ends[message.partition()]:
        unread.discard(message.partition())
consumer.close()
print(json.dumps({
    product: {"version": level["version"], "available": level["available"]}
    for product, level in known.items()
}))
sys.exit(f"partitions are not read to their ends: {sorted(unread)}" if unread else 0)
