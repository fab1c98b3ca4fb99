"""A real sshd on loopback, and accounts of this machine that it lets in with keys."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

from jhlauncher.ports import SERVICES, free_port

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
CONFIGURATION = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/%u.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
LogLevel VERBOSE
"""


class Sshd:
    """sshd, with keys of its own for each account.

    Args:
        folder: for keys and configuration; sshd reads keys as the account that they are for.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port(SERVICES)
        self.key("host_key")
        text = CONFIGURATION.format(port=self.port, folder=folder)
        (folder / "sshd_config").write_text(text)
        self.know(folder / "host_key.pub")

    def key(self, name: str) -> Path:
        """A new private key, beside its public one."""
        path = self.folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        public = path.with_suffix(".pub")
        public.chmod(0o644)
        if name != "host_key":
            public.write_text(f"restrict,port-forwarding {public.read_text()}")  # as the docs say
        return path

    def know(self, public_key: Path) -> None:
        """Make this the host key that is known."""
        kind, key, *_ = public_key.read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def start(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End it, and every connection that it serves: their processes are in sessions of their own."""
        children = _descendants(self.process.pid)
        self.process.terminate()
        self.process.wait(20)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 15)

    @property
    def settings(self) -> dict[str, object]:
        """As a system's `ssh`."""
        return {
            "address": "127.0.0.1",
            "port": self.port,
            "known_hosts": str(self.folder / "known_hosts"),
            "key": str(self.folder / "{account}"),
        }


def _descendants(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and "sshd" in stat.with_name("comm").read_text():
            child = int(stat.parent.name)
            found += [child, *_descendants(child)]
    return found


def account(prefix: str) -> str:
    """A new account of this machine, with a home."""
    name = f"{prefix}{secrets.token_hex(3)}"
    # * and not !: sshd lets nobody in whose account is locked; a number that no container's user has: see `remove`
    shell = ["--shell", "/bin/bash", "--key", "UID_MIN=20000"]
    subprocess.run(["useradd", "--create-home", "--password", "*", *shell, name], check=True)
    return name


def remove(name: str) -> None:
    subprocess.run(["pkill", "-KILL", "-U", str(pwd.getpwnam(name).pw_uid)], check=False)
    subprocess.run(["userdel", "--remove", name], capture_output=True, check=False)
