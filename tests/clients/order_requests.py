"""Produces order requests, as an upstream system does with its own libraries.

usage: order_requests.py BROKERS TOPIC [REGISTRY]

Each line of the standard input is a JSON object with the request, its format (json, avro or
registered), an idempotency key or null, and perhaps more headers. A registered request has the
framing of the registry, and a schema with one more field.
"""

import io
import json
import pathlib
import sys

import confluent_kafka
import fastavro.schema
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

brokers, topic, *registry = sys.argv[1:]
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


def registered(request):
    client = SchemaRegistryClient({"url": registry[0]})
    field = {"name": "till", "type": ["null", "string"], "default": None}
    grown = json.dumps({**schema, "fields": [field, *schema["fields"]]})
    context = SerializationContext(topic, MessageField.VALUE)
    return AvroSerializer(client, grown)({**request, "till": "7"}, context)


FORMATS = {"json": lambda request: json.dumps(request).encode(), "avro": avro}
FORMATS["registered"] = registered
producer = confluent_kafka.Producer({"bootstrap.servers": brokers})
for line in sys.stdin:
    record = json.loads(line)
    request = record["request"]
    value = FORMATS[record["format"]](request)
    headers = {"Idempotency-Key": record["key"]} if record["key"] else {}
    headers |= record.get("headers", {})
    producer.produce(topic, value, headers=headers)
producer.flush()
