"""Receives spans over OTLP/HTTP, as a collector of OpenTelemetry does.

usage: collector.py [FILE]

Prints its URL. Appends each span that it receives to FILE, as a line of JSON. Without FILE, it
discards the spans, so that it takes little time from what is measured beside it.
"""

import http.server
import json
import sys
import threading

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

path = sys.argv[1] if len(sys.argv) > 1 else None
KINDS = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
writing = threading.Lock()


def attributes(entries):
    """The attributes as an object; a number stays a number."""
    values = {}
    for entry in entries:
        kind = entry.value.WhichOneof("value")
        value = getattr(entry.value, kind)
        values[entry.key] = value if kind != "array_value" else MessageToDict(value)
    return values


def described(resource, span):
    return {
        "resource": resource,
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": span.parent_span_id.hex(),
        "trace_state": span.trace_state,
        "name": span.name,
        "kind": KINDS[span.kind],
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "attributes": attributes(span.attributes),
        "links": [
            {"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()} for link in span.links
        ],
        "dropped_links": span.dropped_links_count,
        "is_error": span.status.code == 2,
        "error": span.status.message,
    }


class Collector(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        is_known = self.path == "/v1/traces" and "protobuf" in self.headers["content-type"]
        answer = ExportTraceServiceResponse().SerializeToString()
        if is_known and path:
            self.keep(ExportTraceServiceRequest.FromString(body))
        self.send_response(200 if is_known else 404)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def keep(self, request):
        sent_as = self.headers.get("x-test")
        with writing, open(path, "a") as file:
            for of_resource in request.resource_spans:
                resource = attributes(of_resource.resource.attributes)
                for scope in of_resource.scope_spans:
                    for span in scope.spans:
                        line = {**described(resource, span), "header": sent_as}
                        file.write(json.dumps(line) + "\n")

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
