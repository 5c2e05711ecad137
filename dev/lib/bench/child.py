"""Runs one program that measures, as a child process, and shows a live line meanwhile.

If the run is interrupted, it stops the program and every process that the program started.
"""

import contextlib
import json
import os
import signal
import subprocess
import time

from show import Failed, LiveLine

# Shorter than the time that dev/stack gives this program. dev/stack then stops the servers, with
# the data that the program leaves on them.
STOP_SECONDS = 4
LOG_LINES_SHOWN = 25


class NoResult(Failed):
    """The program ended and printed no result."""


def run(command, env, log_path):
    """Returns the last line that the program prints, decoded from JSON.

    Fails with `NoResult` if the program prints nothing, and with `Failed` if its exit status is not
    0. The message has the end of its log.
    """
    began, line = time.monotonic(), LiveLine(file_seconds=30.0)
    with open(log_path, "w", encoding="utf-8") as log:
        # The child has a session of its own, so that Ctrl-C reaches it once, from _stop. A second
        # signal would cut its cleanup short.
        child = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            printed = _await(child, line, began)
        except BaseException:
            _stop(child)
            raise
        finally:
            line.clear()
    if child.returncode != 0 or not printed.strip():
        failure = Failed if printed.strip() else NoResult
        ended = f"{' '.join(command)}: exit status {child.returncode}"
        raise failure(f"{ended}\n{printed}{_tail(log_path)}".rstrip())
    return json.loads(printed.splitlines()[-1])


def _await(child, line, began):
    while True:
        try:
            return child.communicate(timeout=0.2)[0]
        except subprocess.TimeoutExpired:
            if line.due():
                line.show(f"      {time.monotonic() - began:4.0f} s ...")


def _stop(child):
    child.send_signal(signal.SIGINT)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Kills what is left of its session, the child included. `finally` makes sure of it, also
        # when another signal ends the wait.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _tail(path):
    with open(path, encoding="utf-8", errors="replace") as log:
        lines = log.readlines()[-LOG_LINES_SHOWN:]
    return "".join(f"  {line}" for line in lines)
