"""The prose of the report: the texts without figures, and the wrapping of all lines."""

import re
import textwrap

MAX_COLUMNS = 100
# A line that begins so is no prose: a heading, a table, a picture, HTML.
VERBATIM = ("#", "|", "![", "<")

ABOUT = """\
# Benchmarks

`dev/bench` writes this page from the raw results in [results.jsonl](benchmarks/results.jsonl).
Do not edit it by hand: `dev/bench --report-only` writes it anew, and edits are lost.
"""

MEANING = """\
## What the figures say

Everything runs on one machine, also the load. A figure is the median over the rounds; the lowest
and the highest value are in brackets. In a round, every case runs once.

A run of stocklock counts only if all checks of `stocklock verify` succeed after it. A run of the
peer counts only if the peer's own check of the same kind succeeds. If one run fails its check, the
whole measurement fails.

- *Drain*: a backlog waits on the topic. The time begins when the first worker has its partitions.
  It ends when the last order has its final status in the order store.
- *Ceiling*: the statements of the same batches on bare connections to the same database, without
  Kafka and without locks in Redis. The figure is the best of one, two and four connections.
- *Latency*: the time from the acceptance of an order by ingest to its final status in the order
  store.
- *Open loop*: a client places orders over HTTP at a fixed rate, whatever the answers are.
- *Bare*: the same commits and Kafka hops without stocklock, measured in the same run at the same
  rate. One process has a task for each of them. It closes a batch when the role would close it. It
  uses no HTTP, no consumer groups and no locks in Redis.
"""

PEER = """\
The peer, {names}, does the same job in the usual way with Spring Boot, Spring Kafka, JDBC (the
MariaDB driver) and Redisson. It has one transaction for each order, and one consumer thread for
each partition. Under `redlock` it uses a Redisson multi-lock on one Redis master. It ran on the
same servers, in turn with stocklock, and with as many partitions. In the table, *ours* is
stocklock.

The two programs differ:

- The peer's runs have {orders} orders, after {warmup} orders to warm up. Its time begins at the
  last of the orders to warm up. stocklock runs without them.
- The peer keeps orders and stock in one database. It completes an order in the transaction that
  deducts the stock. Only a refusal travels over Kafka. stocklock sends every outcome over Kafka to
  a separate order store.
- The peer has a row for each line of an order. stocklock has the lines in the order's row.
- The peer's order ids are numbers, and its events are JSON. stocklock uses UUIDs and Avro.
- The peer's connections to the database are not encrypted. Those of stocklock are encrypted if the
  database is MySQL.
- U, Z and H have the same shape for both, but each program draws them with its own random numbers.
- J has the same baskets in the same order for both. Both runs leave out the baskets that ingest
  would refuse. The products are numbered for the peer. A run with more orders has more products.
"""

SHELL = """\
The commands of the single runs need a stack, as `eval "$(dev/stack up && dev/stack env)"` gives it.
FIRST is the first of the Redis masters. BASKETS is the file that `dev/lib/baskets` writes. For the
peer, it is the file that `dev/bench` makes from that. A command that names `stocklock bench` is
that of an earlier version: `stocklock-lab` takes these options now, without the word `bench`.
"""


def wrapped(page):
    """The page with its prose in lines of at most MAX_COLUMNS. Tables and code stay as they are."""
    lines, is_fenced, paragraph = [], False, []

    def end_paragraph():
        if paragraph:
            lines.extend(_fill(paragraph))
            paragraph.clear()

    for line in page.splitlines():
        is_fence = line.startswith("```")
        is_fenced ^= is_fence
        if is_fence or is_fenced or not line or line.startswith(VERBATIM):
            end_paragraph()
            lines.append(line)
            continue
        if line.startswith("- "):
            end_paragraph()
        paragraph.append(line)
    end_paragraph()
    return "\n".join(lines) + "\n"


def _fill(paragraph):
    """The lines of one paragraph or item of a list. A piece of code is not broken."""
    text = " ".join(line.strip() for line in paragraph)
    text = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), text)
    filled = textwrap.wrap(
        text,
        MAX_COLUMNS,
        subsequent_indent="  " if text.startswith("- ") else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in filled]
