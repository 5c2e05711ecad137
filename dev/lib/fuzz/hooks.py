"""What schemathesis has to know beyond the document.

schemathesis loads this module (SCHEMATHESIS_HOOKS).
"""

import itertools
import os

import schemathesis

PREFER = "Prefer"
REQUESTS = itertools.count()


@schemathesis.hook
def before_load_schema(_context, document):
    """Lets requests name the products of this stack. Almost all would name unknown ones."""
    products = os.environ["FUZZ_PRODUCTS"].split(",")
    document["components"]["schemas"]["ProductId"] = {"type": "string", "enum": products}


@schemathesis.hook
def before_call(_context, case, _kwargs):
    """Lets every other request wait for the outcome, unless it has a preference."""
    headers = [parameter.name for parameter in case.operation.headers]
    if PREFER in headers and PREFER not in case.headers and next(REQUESTS) % 2:
        case.headers[PREFER] = "wait=2"
