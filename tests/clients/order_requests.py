"""Produces order requests, as an upstream system does with its own libraries.

usage: order_requests.py BROKERS TOPIC

Each line of the standard input is a JSON object with the request, its format (json or avro), and
an idempotency key or null.
"""

import io
import json
import pathlib
import sys

import confluent_kafka
import fastavro.schema

brokers, topic = sys.argv[1:]
schema = json.loads(pathlib.Path("schemas/order_request.avsc").read_text())
canonical_form = fastavro.schema.to_parsing_canonical_form(schema)
fingerprint = bytes.fromhex(fastavro.schema.fingerprint(canonical_form, "CRC-64-AVRO"))
parsed = fastavro.parse_schema(schema)


def avro(request):
    """Avro's single-object encoding of a request."""
    value = io.BytesIO()
    value.write(b"\xc3\x01" + fingerprint)
    fastavro.schemaless_writer(value, parsed, request)
    return value.getvalue()


producer = confluent_kafka.Producer({"bootstrap.servers": brokers})
for line in sys.stdin:
    record = json.loads(line)
    request = record["request"]
    value = avro(request) if record["format"] == "avro" else json.dumps(request).encode()
    headers = {"Idempotency-Key": record["key"]} if record["key"] else {}
    producer.produce(topic, value, headers=headers)
producer.flush()
