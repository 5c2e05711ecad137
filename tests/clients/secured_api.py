"""Places an order over TLS, first without a token and then with it: URL CA TOKEN.

Prints the two statuses.
"""

import json
import ssl
import sys
import urllib.error
import urllib.request


def place(url, context, headers):
    body = json.dumps({"lines": [{"product_id": "a", "quantity": 1}]}).encode()
    headers = {"content-type": "application/json", **headers}
    request = urllib.request.Request(f"{url}/v1/orders", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def main():
    url, authority, token = sys.argv[1:]
    context = ssl.create_default_context(cafile=authority)
    # Only the version and the name are checked: the test's authority has no key usage.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    refused = place(url, context, {})
    accepted = place(url, context, {"authorization": f"Bearer {token}"})
    print(refused, accepted)


if __name__ == "__main__":
    main()
