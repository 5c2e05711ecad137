"""The sections of the report on the life of an order: keys, ids, holds, imports; and an earlier
version.
"""

from results import ratios
from tables import counts, spread, table, times

IDENTITIES = {
    "none": "`POST`",
    "key": "`POST` with an `Idempotency-Key`",
    "order-id": "`PUT` with an id of the client",
}
MODES = {
    "drain": "a backlog drained",
    "end-to-end": "256 clients over HTTP",
    "batch": "4 streams of lines (`:batch`)",
    "kafka": "records of `order-requests`",
}


def identity(results):
    runs = results.runs["identity"]
    yield "## With a key, or with an id of the client\n"
    yield f"{counts(runs)} orders of workload Z under `row`. 256 clients place them over HTTP."
    yield "Each order has a key or an id of its own, so no request is a repetition.\n"
    plain = results.select("identity", identity="none")
    rows = [
        [IDENTITIES[name], *_beside(results.select("identity", identity=name), plain)]
        for name in results.labels("identity", "identity")
    ]
    yield from table(["request", "orders/s", "of that without"], rows)


def holds(results):
    runs = results.runs["holds"]
    yield "## Beside open holds\n"
    yield f"{counts(runs)} orders of workload Z under `row`. None of them holds its stock."
    yield "The order store has no open hold, or it has those of other orders.\n"
    rows = []
    for mode in results.labels("holds", "mode"):
        without = results.select("holds", mode=mode, open_holds=0)
        for count in results.labels("holds", "open_holds", mode=mode):
            chosen = results.select("holds", mode=mode, open_holds=count)
            rows.append([MODES[mode], f"{count:,}", *_beside(chosen, without)])
    yield from table(["load", "open holds", "orders/s", "of that without"], rows)


def expiry(results):
    runs = results.runs["expiry"]
    interval = runs[0]["labels"]["kill_every_s"]
    yield "## Holds that end while compensators die\n"
    yield "Clients place orders with holds of 5 to 20 s, and as many without, at a fixed rate."
    yield "They confirm half of the holds at a random time, some of them too late."
    yield f"Every {interval} s SIGKILL kills one of two compensators, in turn."
    yield "It starts again at once."
    yield "Each answer was as it should be, and none was a 503."
    yield "Every hold that was not confirmed in time expired, *latest* after its end at most.\n"
    figures = ("seconds", "kills", "confirmed", "expired", "latest_s")
    row = [counts(runs, "holds"), *(spread(runs, figure) for figure in figures)]
    titles = ["holds", "seconds", "kills", "confirmed", "expired", "latest, s"]
    yield from table(titles, [row], texts=0)


def imports(results):
    yield "## An import\n"
    yield "`stocklock order import` sends a file of real baskets, the invalid ones too."
    yield "The time runs until the last answer, and not until the orders are final."
    yield "SIGKILL ends the import as often as the table says."
    yield "It then starts again with the same file.\n"
    yield "The summary accounts for each line, and `verify` finds each order once.\n"
    rows = []
    figures = ("orders_per_s", "seconds", "orders", "replayed", "invalid", "errors")
    for kills in results.labels("imports", "kills"):
        chosen = results.select("imports", kills=kills)
        row = [str(kills), counts(chosen, "lines"), *(spread(chosen, name) for name in figures)]
        rows.append([*row, spread(chosen, "ingest_peak_mib")])
    titles = ["kills", "lines", "orders/s", "seconds", "placed", "placed before", "invalid"]
    yield from table([*titles, "errors", "ingest's peak, MiB"], rows, texts=0)


def versions(results):
    runs = results.runs["versions"]
    yield "## Beside an earlier version\n"
    yield f"{counts(runs)} orders of workload Z under `row`. The two versions run in turn."
    yield "No order has a key or a hold."
    yield "An earlier version without `:batch` or the intake places one order a request there.\n"
    rows = []
    for mode in results.labels("versions", "mode"):
        earlier = results.select("versions", mode=mode, who="earlier")
        now = results.select("versions", mode=mode, who="now")
        rows.append([MODES[mode], spread(earlier), *_beside(now, earlier)])
    yield from table(["load", "earlier, orders/s", "now, orders/s", "now / earlier"], rows)


def _beside(chosen, others):
    return spread(chosen), times(ratios(chosen, others, "orders_per_s"), 3)
