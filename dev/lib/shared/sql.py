"""A look into the databases, through the client program that comes with them."""

import shutil
import subprocess
import urllib.parse


class Database:
    """One database on the server that `url` names."""

    def __init__(self, url, name):
        self.parts = urllib.parse.urlsplit(url)
        self.name = name

    @property
    def url(self):
        return self.parts._replace(path=f"/{self.name}").geturl()

    def create(self):
        self._run("mysql", f"CREATE DATABASE `{self.name}`")

    def drop(self):
        self._run("mysql", f"DROP DATABASE IF EXISTS `{self.name}`")

    def rows(self, statement):
        """Each row as a list of texts."""
        return [line.split("\t") for line in self._run(self.name, statement).splitlines()]

    def value(self, statement):
        return self.rows(statement)[0][0]

    def count(self, statement):
        """The sum or number that the statement gives; none at all is 0."""
        value = self.value(statement)
        return 0 if value == "NULL" else int(value)

    def server_version(self):
        version = self.value("SELECT VERSION()")
        return (
            f"MariaDB {version.split('-')[0]}"
            if "MariaDB" in version
            else f"MySQL {version.split('-')[0]}"
        )

    def _run(self, database, statement):
        command = [
            shutil.which("mariadb") or "mysql",
            "--no-defaults",
            "--protocol=tcp",
            f"--host={self.parts.hostname}",
            f"--port={self.parts.port}",
            f"--user={self.parts.username}",
            f"--password={self.parts.password}",
            "--default-character-set=utf8mb4",
            "--batch",
            "--skip-column-names",
            f"--execute={statement}",
        ]
        if "ssl-mode=REQUIRED" in self.parts.query:
            command.append("--ssl")
        done = subprocess.run([*command, database], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{statement}: {done.stderr.strip()}")
        return done.stdout
