"""Describes the machine, the servers and their settings, for the report."""

import os
import pathlib
import platform
import re
import socket
import subprocess
import urllib.parse

from programs import first_redis
from show import Failed
from sql import Database

# The variables that make a commit durable. The report shows them, and those of SHOWN.
DURABLE = {
    "innodb_flush_log_at_trx_commit": "1",
    "sync_binlog": "1",
    "log_bin": "ON",
    "innodb_doublewrite": "ON",
}
SHOWN = (
    "binlog_format",
    "innodb_buffer_pool_size",
    "innodb_flush_method",
    "innodb_log_file_size",
    "innodb_log_writer_threads",
    "innodb_redo_log_capacity",
)


def describe(kafka_version):
    """The machine, the servers and their settings. Fails if a commit is not durable."""
    database = Database(os.environ["STOCKLOCK__ORDER_STORE__URL"], "stocklock")
    return {
        "machine": _machine(),
        "servers": {
            "database": database.server_version(),
            "Kafka": kafka_version,
            "Redis": _redis_version(),
            "Java": _java_version(),
        },
        "variables": _variables(database),
    }


def _machine():
    model = re.search(
        r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M
    )
    memory = re.search(
        r"^MemTotal:\s*(\d+) kB", pathlib.Path("/proc/meminfo").read_text(encoding="utf-8"), re.M
    )
    release = platform.freedesktop_os_release()
    return {
        "cores": os.cpu_count(),
        "processor": model[1] if model else platform.machine(),
        "memory_gib": round(int(memory[1]) / 2**20, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "system": release.get("PRETTY_NAME", release["NAME"]),
    }


def _variables(database):
    names = ", ".join(f"'{name}'" for name in (*DURABLE, *SHOWN))
    found = dict(database.rows(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})"))
    for name, value in DURABLE.items():
        if found.get(name) != value:
            raise Failed(f"{name}: expected {value} for durable commits, found {found.get(name)}")
    return found


def _redis_version():
    url = urllib.parse.urlsplit(first_redis())
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(b"INFO server\r\nQUIT\r\n")
        with connection.makefile("rb") as answer:
            info = answer.read().decode()
    return re.search(r"redis_version:(\S+)", info)[1]


def _java_version():
    text = subprocess.run(["java", "-version"], check=True, capture_output=True, text=True).stderr
    return re.search(r'version "([^"]+)"', text)[1]
