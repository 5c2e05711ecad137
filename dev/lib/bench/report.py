"""Writes the report. Every figure in it comes from the results."""

import json
import statistics

import figures
from lifecycle import expiry, holds, identity, imports, versions
from programs import SERVERS
from prose import ABOUT, MEANING, PEER, SHELL, wrapped
from results import ratios, values
from tables import chart, counts, spread, table, times

LATENCIES = ("p50_ms", "p99_ms", "max_ms", "bare_p99_ms", "ratio_to_bare_p99")
ROLES = ("worker", "compensator", "ingest")
# The programs whose CPU time has a column.
PROGRAMS = ("worker", "compensator", *SERVERS)


def write(results, out, workloads):
    """Writes the charts and the page into the folder `out`. Returns the paths of all files."""
    folder = out / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    charts = figures.draw(results)
    for name, svg in charts.items():
        (folder / name).write_text(svg, encoding="utf-8")
    text = wrapped("\n".join(_parts(results, workloads)))
    (out / "benchmarks.md").write_text(text, encoding="utf-8")
    return [out / "benchmarks.md", *(folder / name for name in charts)]


def _parts(results, workloads):
    yield ABOUT
    if any(setting["quick"] for setting in results.settings.values()):
        yield "**Some of these runs were quick runs, to try the script.**"
        yield "**Their figures say nothing.**\n"
    yield MEANING
    yield from _workloads(workloads)
    sections = (drain, batch, workers, latency, identity, memory, history, holds, expiry, churn)
    for section in (*sections, imports, versions):
        if results.runs.get(section.__name__):
            yield from section(results)
    yield from _conditions(results)
    yield from _repeat(results)


def _workloads(workloads):
    yield "| workload | |"
    yield "| --- | --- |"
    for workload in workloads.values():
        yield f"| {workload.name} | {workload.what}; stock for {workload.fill:.0%} of the demand |"
    yield ""


def drain(results):
    ours, peers = results.select("drain", who="stocklock"), results.select("drain", who="peer")
    yield "## A backlog drained\n"
    batch_max = counts(ours, "batch_max")
    yield f"{counts(ours)} orders a run, batches of at most {batch_max}, one worker.\n"
    yield from chart("drain", "Orders a second by workload and lock strategy")
    titles = [
        "workload",
        "lock strategy",
        "orders/s",
        "ceiling",
        "of the ceiling",
        "worker's peak, MiB",
    ]
    rows = []
    for workload in results.labels("drain", "workload"):
        of_row = results.select("drain", who="stocklock", workload=workload, variant="row")
        ceilings = [
            {**run, "result": {"orders_per_s": run["result"]["ceiling_orders_per_s"]}}
            for run in of_row
        ]
        for variant, name in figures.NAMES.items():
            runs = results.select("drain", who="stocklock", workload=workload, variant=variant)
            shares = ratios(runs, ceilings, "orders_per_s")
            peak = max(run["result"]["peak_rss_mib_by_role"]["worker"] for run in runs)
            rows.append(
                [workload, name, spread(runs), spread(ceilings), times(shares, 2), f"{peak:.0f}"]
            )
    yield from table(titles, rows, texts=2)
    yield from where_the_time_goes(results)
    if peers:
        yield from beside_the_peer(results, peers)


def where_the_time_goes(results):
    cores = results.settings["drain"]["machine"]["cores"]
    yield "### Where the time goes\n"
    yield "CPU milliseconds for a thousand orders, medians."
    yield "*All* is the sum over all programs; the client of the measurement is one of them."
    yield "*Busy* is the share that this sum has of the CPU time of the cores."
    yield f"All programs share {cores} cores: a program that needs less leaves more to the others."
    yield "[performance.md](performance.md) lists what was tried to need less.\n"
    rows = []
    for workload in results.labels("drain", "workload"):
        for variant, name in figures.NAMES.items():
            runs = results.select("drain", who="stocklock", workload=workload, variant=variant)
            used = [[_cpu_millis(run["result"], program) for program in PROGRAMS] for run in runs]
            every = [sum(_all_cpu(run["result"]).values()) * 1000 for run in runs]
            busy = [
                cpu * run["result"]["orders_per_s"] / 1e6 / cores for cpu, run in zip(every, runs)
            ]
            millis = [f"{statistics.median(column):.1f}" for column in (*zip(*used), every)]
            rows.append([workload, name, *millis, f"{statistics.median(busy):.0%}"])
    yield from table(["workload", "lock strategy", *PROGRAMS, "all", "busy"], rows, texts=2)


def _all_cpu(result):
    return {
        **result["cpu_seconds_per_1000_orders"],
        **result["cpu_seconds_per_1000_orders_of_others"],
    }


def _cpu_millis(result, program):
    return _all_cpu(result).get(program, 0) * 1000


def beside_the_peer(results, peers):
    yield "### Beside a peer\n"
    names = ", ".join(f"`{name}`" for name in sorted(set(values(peers, "peer"))))
    warmup = results.settings["drain"]["peer_warmup"]
    yield PEER.format(names=names, orders=counts(peers), warmup=f"{warmup:,}")
    titles = [
        "workload",
        "ours",
        "peer",
        "ours, orders/s",
        "peer, orders/s",
        "ours / peer, median of the rounds",
    ]
    rows = []
    for workload in results.labels("drain", "workload", who="peer"):
        for variant, of_peer in (("row", "row"), ("redlock-1", "redlock"), ("redlock", "redlock")):
            ours = results.select("drain", who="stocklock", workload=workload, variant=variant)
            theirs = results.select("drain", who="peer", workload=workload, variant=of_peer)
            compared = f"{times(ratios(ours, theirs, 'orders_per_s'))} ×"
            rows.append(
                [workload, figures.NAMES[variant], of_peer, spread(ours), spread(theirs), compared]
            )
    yield from table(titles, rows, texts=3)


def batch(results):
    runs = results.runs["batch"]
    yield "## By batch size\n"
    yield f"{counts(runs)} orders a run, fewer with small batches. One worker.\n"
    yield from chart("batch", "Orders a second by batch size")
    rows = [
        [f"{size:,}", *_by_strategy(results, "batch", workload="Z", batch_max=size)]
        for size in results.labels("batch", "batch_max", workload="Z")
    ]
    yield from table(
        ["workload Z, most orders of a transaction", "row, orders/s", "redlock, orders/s"], rows
    )
    rows = []
    for workload in (name for name in results.labels("batch", "workload") if name != "Z"):
        small, large = sorted(results.labels("batch", "batch_max", workload=workload))
        of_small = results.select("batch", workload=workload, batch_max=small)
        of_large = results.select("batch", workload=workload, batch_max=large)
        more = f"{times(ratios(of_large, of_small, 'orders_per_s'))} ×"
        rows.append([f"{workload}, row", spread(of_small), spread(of_large), more])
    yield from table(
        ["workload", "one by one, orders/s", f"batches of {large:,}, orders/s", "gain"], rows
    )


def _by_strategy(results, section, **labels):
    return [
        spread(results.select(section, variant=variant, **labels)) for variant in figures.COLOURS
    ]


def workers(results):
    yield "## By number of workers\n"
    yield f"{counts(results.runs['workers'])} orders a run, workload Z. All workers start at once."
    yield "The time of a run includes the assignment of the partitions to the workers.\n"
    yield from chart("workers", "Orders a second by number of worker processes")
    rows = [
        [str(count), *_by_strategy(results, "workers", workers=count)]
        for count in results.labels("workers", "workers")
    ]
    yield from table(["worker processes", "row, orders/s", "redlock, orders/s"], rows)


def latency(results):
    yield "## Latency by load\n"
    yield "Workload Z over HTTP, one process of each role."
    yield "*100%* is the rate that 256 clients reach if each places one order after another."
    yield "At *alone*, the rate is so low that an order meets no other order."
    yield "*Final* is lower than *placed* where a queue builds up.\n"
    yield from chart("latency", "Latency by load, median and 99th percentile")
    titles = [
        "lock strategy",
        "load",
        "placed, orders/s",
        "final, orders/s",
        "p50, ms",
        "p99, ms",
        "highest, ms",
    ]
    titles += ["bare p99, ms", "of the bare p99"]
    rows = []
    for variant in figures.COLOURS:
        for load in results.labels("latency", "load", variant=variant):
            runs = results.select("latency", variant=variant, load=load)
            closed = load == "capacity"
            placed = "256 clients" if closed else f"{runs[0]['labels']['rate']:,}"
            latencies = [spread(runs, figure) for figure in LATENCIES]
            rows.append([variant, "100%" if closed else load, placed, spread(runs), *latencies])
    yield from table(titles, rows, texts=2)


def memory(results):
    yield "## Peak memory\n"
    yield "The highest resident memory over the rounds. Workload Z, one process of each role.\n"
    rows = []
    for source in results.labels("memory", "source"):
        for variant in results.labels("memory", "variant", source=source):
            chosen = results.select("memory", variant=variant, source=source)
            peaks = [run["result"]["peak_rss_mib_by_role"] for run in chosen]
            highest = [max(peak.get(role, 0) for peak in peaks) for role in ROLES]
            cells = [f"{peak:.0f}" if peak else "–" for peak in highest]
            rows.append([f"{source}, {variant}", counts(chosen), spread(chosen), *cells])
    titles = [
        "orders from, lock strategy",
        "orders",
        "orders/s",
        *(f"{role}, MiB" for role in ROLES),
    ]
    yield from table(titles, rows)


def history(results):
    runs = results.runs["history"]
    yield "## Over a history\n"
    yield f"{counts(runs)} orders of workload Z under `row`."
    yield "The stores are empty, or they already hold orders."
    yield "Then the order store has a row for each of those orders."
    yield "The stock store has a row for each outcome.\n"
    titles = ["orders in the stores", "orders/s", "of that on empty stores"]
    empty = results.select("history", history=0)
    rows = []
    for count in results.labels("history", "history"):
        chosen = results.select("history", history=count)
        rows.append([f"{count:,}", spread(chosen), times(ratios(chosen, empty, "orders_per_s"), 2)])
    yield from table(titles, rows, texts=0)


def churn(results):
    setting = results.runs["churn"][0]
    started, labels = setting["result"]["workers"], setting["labels"]
    rate, interval = labels["rate"], labels["every_s"]
    yield "## Workers that come and go\n"
    yield f"{started} workers run at first."
    yield f"Every {interval} s another worker joins, or SIGKILL kills the oldest worker, in turn."
    yield f"Meanwhile {rate:,} orders/s of workload Z arrive over HTTP."
    yield "No order waited longer than *highest*.\n"
    titles = [
        "lock strategy",
        "orders",
        "seconds",
        "joined",
        "killed",
        "p50, ms",
        "p99, ms",
        "highest, ms",
    ]
    rows = []
    for variant in figures.COLOURS:
        chosen = results.select("churn", variant=variant)
        cells = [
            spread(chosen, figure)
            for figure in ("seconds", "joined", "killed", "p50_ms", "p99_ms", "max_ms")
        ]
        rows.append([variant, counts(chosen), *cells])
    yield from table(titles, rows)


def _conditions(results):
    """The machines and servers. Sections that were measured on the same ones share a table."""
    yield "## Measured on\n"
    groups = {}
    for section, setting in results.settings.items():
        facts = {
            name: setting[name] for name in ("machine", "servers", "variables", "version", "commit")
        }
        groups.setdefault(json.dumps(facts, sort_keys=True), []).append(section)
    for text, sections in groups.items():
        facts = json.loads(text)
        machine, servers = facts["machine"], facts["servers"]
        variables = ", ".join(
            f"`{name}={value}`" for name, value in sorted(facts["variables"].items())
        )
        memory_of = f"{machine['memory_gib']} GiB of memory"
        commit = f", commit {facts['commit']}" if facts["commit"] else ""
        others = ", ".join(
            f"{name} {version}" for name, version in servers.items() if name != "database"
        )
        yield from table(
            ["", ", ".join(sections)],
            [
                ["machine", f"{machine['cores']} cores, {machine['processor']}, {memory_of}"],
                ["system", f"{machine['system']}, {machine['kernel']}"],
                ["program", facts["version"] + commit],
                ["servers", f"{servers['database']}, {others}"],
                ["database", variables],
            ],
            texts=2,
        )
    rows = []
    for section, setting in results.settings.items():
        runs = results.runs[section]
        load = statistics.median(run["load_average_before"] for run in runs)
        rows.append([section, setting["began"], str(len(runs)), f"{load:.1f}"])
    yield from table(
        ["section", "begun", "runs", "load average before a run, median"], rows, texts=2
    )


def _repeat(results):
    yield "## How to repeat it\n"
    yield "```sh"
    yield from sorted({setting["command"] for setting in results.settings.values()})
    yield "```\n"
    yield SHELL
    for section in results.settings:
        yield f"<details><summary>{section}</summary>\n\n```sh"
        yield from dict.fromkeys(run["command"] for run in results.runs[section])
        yield "```\n\n</details>\n"
