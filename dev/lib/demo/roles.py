"""The roles of stocklock as processes: started, watched through their metrics, stopped."""

import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

ROLES = ("ingest", "worker", "compensator")
READY_SECONDS = 60
STOP_SECONDS = 30
LOG_LINES_SHOWN = 25

SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")


class RoleFailed(Exception):
    pass


def free_ports(count):
    """Different ports that nobody listens on, all held until the last of them is known."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports


class Roles:
    """Ingest, worker and compensator, each a process with an admin address of its own."""

    def __init__(self, binary, env, log_folder):
        self.binary = binary
        self.log_folder = log_folder
        http, *admins = free_ports(1 + len(ROLES))
        self.url = f"http://127.0.0.1:{http}"
        # What the command line client needs too.
        self.env = {**env, "STOCKLOCK__HTTP__LISTEN": f"127.0.0.1:{http}", "STOCKLOCK__CLIENT__URL": self.url}
        self.admin = dict(zip(ROLES, (f"127.0.0.1:{port}" for port in admins)))
        self.processes = {}

    def __enter__(self):
        try:
            for role in ROLES:
                self._start(role)
            for role in ROLES:
                self._await_ready(role)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Asks all to stop and waits for it. Gives those that did not end by themselves with status 0."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        failed = []
        for role, process in self.processes.items():
            try:
                status = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            if status != 0:
                failed.append(f"{role} ended with status {status}")
        self.processes = {}
        return failed

    def require_alive(self):
        for role, process in self.processes.items():
            if process.poll() is not None:
                raise RoleFailed(f"{role} ended with status {process.returncode}")

    def metric(self, role, name, **labels):
        """The sum over the samples of that name whose labels are the given ones."""
        total = 0.0
        for line in self._get(role, "/metrics").splitlines():
            sample = SAMPLE.match(line)
            if sample and sample["name"] == name:
                found = dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"] or ""))
                if all(found.get(label) == value for label, value in labels.items()):
                    total += float(sample["value"])
        return int(total)

    def log_tail(self, role):
        if not os.path.exists(self._log_path(role)):
            return f"{role} was not started"
        with open(self._log_path(role), encoding="utf-8", errors="replace") as log:
            lines = log.readlines()[-LOG_LINES_SHOWN:]
        return f"the end of the log of {role}:\n" + "".join(f"  {line}" for line in lines)

    def _log_path(self, role):
        return os.path.join(self.log_folder, role)

    def _start(self, role):
        env = {**self.env, "STOCKLOCK__ADMIN__LISTEN": self.admin[role]}
        with open(self._log_path(role), "wb") as log:
            self.processes[role] = subprocess.Popen(
                [self.binary, role], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _await_ready(self, role):
        deadline = time.monotonic() + READY_SECONDS
        while True:
            self.require_alive()
            try:
                self._get(role, "/readyz")
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RoleFailed(f"{role} is not ready after {READY_SECONDS} s: {error}") from error
            time.sleep(0.05)

    def _get(self, role, path):
        with urllib.request.urlopen(f"http://{self.admin[role]}{path}", timeout=10) as answer:
            return answer.read().decode()
