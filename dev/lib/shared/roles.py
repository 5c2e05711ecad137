"""The roles of stocklock and their metrics. The program of dev/servers starts and stops them."""

import os
import re
import subprocess
import urllib.request

ROLES = ("ingest", "worker", "compensator")
# Longer than the time after which that program kills the roles.
STOP_SECONDS = 60
LOG_LINES_SHOWN = 25

SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")


class RoleFailed(Exception):
    """A role did not start, or has ended."""


class Roles:
    """Ingest, worker and compensator. Each is a process with its own addresses."""

    def __init__(self, binary, env, log_folder):
        self.binary = binary
        self.log_folder = log_folder
        # The command line client uses it too. It needs the address of ingest, which is added later.
        self.env = env
        self.url = None
        self.admin = {}
        self.supervisor = None

    def __enter__(self):
        # The program reports its errors itself. It stops the roles when its input closes, so also
        # when this process dies.
        command = [
            os.environ["STOCKLOCK_SERVERS"],
            "roles",
            "--binary",
            self.binary,
            "--logs",
            self.log_folder,
            *ROLES,
        ]
        self.supervisor = subprocess.Popen(
            command, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            http = self._read_addresses()
        except BaseException:
            self.stop()
            raise
        self.url = f"http://{http['ingest']}"
        self.env["STOCKLOCK__CLIENT__URL"] = self.url
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Asks all roles to stop, and waits for them.

        Returns a list of failures, which is empty if all roles ended with status 0.
        """
        if self.supervisor is None:
            return []
        supervisor, self.supervisor = self.supervisor, None
        supervisor.stdin.close()
        try:
            status = supervisor.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            status = supervisor.wait()
        supervisor.stdout.close()
        return [] if status == 0 else ["a role did not end with status 0"]

    def require_alive(self):
        if self.supervisor.poll() is not None:
            raise RoleFailed("a role has ended")

    def _read_addresses(self):
        """Waits until all roles are ready. Returns the HTTP address of each.

        Fails with `RoleFailed` if a role does not become ready.
        """
        http = {}
        for _ in ROLES:
            line = self.supervisor.stdout.readline()
            if not line:
                raise RoleFailed("the roles are not ready")
            role, address, self.admin[role] = line.split()
            http[role] = address
        return http

    def metric(self, role, name, **labels):
        """The sum over the samples with this name and these labels."""
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

    def _get(self, role, path):
        with urllib.request.urlopen(f"http://{self.admin[role]}{path}", timeout=10) as answer:
            return answer.read().decode()
