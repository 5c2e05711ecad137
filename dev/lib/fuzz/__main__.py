"""Runs schemathesis against the roles of stocklock, and judges what it reports.

dev/fuzz runs it inside a stack.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

import answers
import entry
from program import Stocklock
from roles import ROLES, RoleFailed, Roles
from show import Failed, check, heading, say

HERE = pathlib.Path(__file__).resolve().parent
PLENTY, SCARCE = 1_000_000_000, 3
# Of every four products one is scarce, so that orders are refused too.
PRODUCTS = {f"sku-{n}": SCARCE if n % 4 == 0 else PLENTY for n in range(1, 21)}
# Short, so that a stream of events ends soon.
HOLD_MAX_SECONDS = 2
SETTLE_SECONDS = 60
# A request waits for 2 s at most, and a stream ends with the hold of its order.
REQUEST_SECONDS = 30
# Beyond the time for requests, schemathesis finishes the request in flight and its report.
GRACE_SECONDS = 60


def parse_options():
    parser = argparse.ArgumentParser(prog="dev/lib/fuzz")
    parser.add_argument("--binary", required=True)
    parser.add_argument("--schemathesis", required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    options.logs = pathlib.Path(os.environ["STOCKLOCK_STACK_DIR"]) / "logs" / "fuzz"
    options.logs.mkdir(parents=True)
    return options


def make_token(binary, folder):
    """Makes a token with every scope. Returns it and the path of its file, as ingest reads it."""
    scopes = ("orders:write", "orders:read", "stock:write")
    options = [option for scope in scopes for option in ("--scope", scope)]
    made = Stocklock(binary, os.environ).json("token", "fuzz", *options)
    tokens = folder / "tokens"
    tokens.write_text(made["line"] + "\n", encoding="utf-8")
    return made["token"], tokens


def prepare(stocklock, folder):
    heading("setup and stock")
    stocklock.run("setup")
    products = folder / "products.csv"
    rows = [f"{product},{product},{units}\n" for product, units in PRODUCTS.items()]
    products.write_text("product_id,name,available\n" + "".join(rows), encoding="utf-8")
    stocklock.run("stock", "import", products)


def send_requests(options, url, token):
    """Runs schemathesis. Returns its exit status and the path of its report."""
    heading(f"generated requests, for {options.seconds} s at most, with seed {options.seed}")
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    report = options.out / "report.ndjson"
    command = [
        *(options.schemathesis, "--config-file", str(HERE / "schemathesis.toml")),
        *("run", f"{url}/openapi.json"),
        *("--checks", "all", "--continue-on-failure"),
        # The only required header is Authorization, which is added to each request below. The check
        # `ignored_auth` tries requests without it.
        *("--exclude-checks", "missing_required_header"),
        *("--header", f"Authorization: Bearer {token}"),
        *("--request-timeout", str(REQUEST_SECONDS)),
        *("--seed", str(options.seed), "--max-time", str(options.seconds)),
        *("--report", "ndjson", "--report-ndjson-path", str(report)),
    ]
    env = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "SCHEMATHESIS_HOOKS": "hooks",
        "FUZZ_URL": url,
        "FUZZ_TOKEN": token,
        "FUZZ_PRODUCTS": ",".join(PRODUCTS),
        "FUZZ_HOLD_MAX_SECONDS": str(HOLD_MAX_SECONDS),
    }
    # In its own folder: it keeps its examples and failures in the present one.
    done = subprocess.run(
        command,
        env=env,
        cwd=options.out,
        stdin=subprocess.DEVNULL,
        timeout=options.seconds + GRACE_SECONDS,
        check=False,
    )
    return done.returncode, report


def judge(status, report, url):
    heading("answers by endpoint")
    found = answers.count(report)
    answers.show(found)
    if status != 0:
        raise Failed(f"schemathesis found failures, see above; all requests are in {report}")
    say("   ok  schemathesis found no failure")
    without = answers.without_success(found, url)
    if without:
        raise Failed(f"no answer of status 200 to 299: {', '.join(without)}")
    say("   ok  every endpoint had answers of status 200 to 299")


def run(options):
    token, tokens = make_token(options.binary, options.logs)
    env = {
        **os.environ,
        "STOCKLOCK__ORDERS__HOLD_MAX": f"{HOLD_MAX_SECONDS}s",
        "STOCKLOCK__AUTH__TOKENS_FILE": str(tokens),
    }
    stocklock = Stocklock(options.binary, env)
    prepare(stocklock, options.logs)
    with Roles(options.binary, env, options.logs) as roles:
        try:
            status, report = send_requests(options, roles.url, token)
            roles.require_alive()
            judge(status, report, roles.url)
            heading("verification")
            stocklock.run("verify", "--settle", f"{SETTLE_SECONDS}s")
            check(True, "stocklock verify found no violation")
        except (Failed, RoleFailed, subprocess.TimeoutExpired):
            for role in ROLES:
                say(f"\n{roles.log_tail(role)}")
            raise
        finally:
            shutil.copytree(options.logs, options.out / "logs")
        failures = roles.stop()
        check(not failures, "all roles ended with status 0")


def main():
    options = parse_options()
    started = time.monotonic()
    try:
        run(options)
    except (Failed, RoleFailed, subprocess.TimeoutExpired) as failure:
        say(f"\n   FAILED  {failure}")
        sys.exit(1)
    say(f"\nAll checks succeeded. {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    entry.run(main)
