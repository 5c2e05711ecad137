"""One measuring program as a child process: awaited with a live line, stopped with all that it started."""

import contextlib
import json
import os
import signal
import subprocess
import time

from show import Failed, LiveLine

# Less than dev/stack leaves us; and its servers go with all that is on them.
STOP_SECONDS = 4
LOG_LINES_SHOWN = 25


class NoResult(Failed):
    """It ended without a word on what it measured."""


def run(command, env, log_path):
    """The last line that it prints, which is JSON. Its exit status must be 0."""
    began, line = time.monotonic(), LiveLine(file_seconds=30.0)
    with open(log_path, "w", encoding="utf-8") as log:
        # In a session of its own, so that Ctrl-C reaches it once, by us: a second one cuts short what it tidies up.
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
        raise failure(
            f"{' '.join(command)}: exit status {child.returncode}\n{printed}{_tail(log_path)}".rstrip()
        )
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
        # What is left of its session, itself included, also where we are asked again meanwhile.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _tail(path):
    with open(path, encoding="utf-8", errors="replace") as log:
        lines = log.readlines()[-LOG_LINES_SHOWN:]
    return "".join(f"  {line}" for line in lines)
