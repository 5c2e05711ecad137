"""The program stocklock as a command line, and a look at one product through it."""

import json
import subprocess

from show import Failed


class Stocklock:
    """Runs the program stocklock with the settings of one strategy."""

    def __init__(self, binary, env):
        self.binary = binary
        self.env = env

    def start(self, *arguments, **how):
        return subprocess.Popen(
            [self.binary, *map(str, arguments)], env=self.env, stdin=subprocess.DEVNULL, **how
        )

    def run(self, *arguments, expect=0):
        """Returns what it prints. Fails with `Failed` if its exit status is not `expect`."""
        with self.start(
            *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            printed, log = process.communicate()
        if process.returncode != expect:
            command = " ".join(["stocklock", *map(str, arguments)])
            failure = f"{command}: expected exit status {expect}, found {process.returncode}"
            raise Failed(f"{failure}\n{printed}{log}".rstrip())
        return printed

    def json(self, *arguments, expect=0):
        return json.loads(self.run("--output", "json", *arguments, expect=expect))

    def json_lines(self, *arguments):
        printed = self.run("--output", "json", *arguments)
        return [json.loads(line) for line in printed.splitlines()]


class Product:
    def __init__(self, stocklock, product_id):
        self.stocklock = stocklock
        self.id = product_id

    def available(self):
        return self.stocklock.json("stock", "show", self.id)[0]["available"]
