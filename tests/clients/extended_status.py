"""Writes statuses as a system does whose schema has one more field, with a default.

usage: extended_status.py SCHEMA_FILE ORDER_ID...

It writes this schema to SCHEMA_FILE. It prints a line for each order: the fingerprint of the schema
and the datum, both in hexadecimal.
"""

import io
import json
import pathlib
import sys
import time

import fastavro.schema

schema = json.loads(pathlib.Path("schemas/order_status.avsc").read_text())
schema["fields"].insert(2, {"name": "terminal", "type": ["null", "string"], "default": None})
pathlib.Path(sys.argv[1]).write_text(json.dumps(schema))
canonical_form = fastavro.schema.to_parsing_canonical_form(schema)
fingerprint = fastavro.schema.fingerprint(canonical_form, "CRC-64-AVRO")
for order_id in sys.argv[2:]:
    status = {"order_id": order_id, "status": "FAILED", "terminal": "till 7", "reason": "extended"}
    status |= {"source": "payments", "occurred_at": int(time.time() * 1000)}
    datum = io.BytesIO()
    fastavro.schemaless_writer(datum, fastavro.parse_schema(schema), status)
    print(fingerprint, datum.getvalue().hex())
