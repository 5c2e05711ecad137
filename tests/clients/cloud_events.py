"""Reads the events of a topic from the headers of CloudEvents: BROKERS TOPIC COUNT.

It prints the attributes and the value of each event as JSON, until it has read COUNT events.
"""

import json
import sys
import time

from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.formats.json import JSONFormat
from confluent_kafka import Consumer

brokers, topic, count = sys.argv[1:]
missing, deadline = int(count), time.monotonic() + 30
consumer = Consumer({
    "bootstrap.servers": brokers, "group.id": f"events-{topic}", "auto.offset.reset": "earliest",
})
consumer.subscribe([topic])
while missing > 0 and time.monotonic() < deadline:
    message = consumer.poll(1)
    if message and not message.error():
        headers = dict(message.headers() or [])
        received = KafkaMessage(headers=headers, key=message.key(), value=message.value())
        event = from_binary(received, JSONFormat())
        data = event.get_data()
        print(json.dumps(event.get_attributes() | {
            "data": data.hex() if isinstance(data, bytes) else data,
        }, default=str))
        missing -= 1
consumer.close()
sys.exit(f"{missing} events are missing" if missing else 0)
