"""``jhlauncher check`` says what is wrong with systems before users do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config, Configurable

from jhlauncher.operations.on_systems import of_systems
from tests.userjobs.conftest import Site

pytestmark = pytest.mark.asyncio


async def findings(**system: Any) -> list[tuple[str, str, str]]:
    parent = Configurable(config=Config({"Systems": {"systems": {"cluster": system}}}))
    return [(found.check, found.status, found.message) async for found in of_systems(parent)]


async def test_nothing_is_wrong(site: Site):
    assert await findings(**site.system()) == [("system cluster", "ok", "Its Slurm says how jobs are.")]
    assert await findings(**site.system(ssh=None, local=True)) == [
        ("system cluster", "ok", "Its Slurm says how jobs are.")
    ]


def a_wrong_key(site: Site, folder: Path) -> dict[str, Any]:
    for name in (site.ada, site.bob, site.view):
        shutil.copy(site.sshd.folder / name, folder / name)
    shutil.copy(site.sshd.folder / site.bob, folder / site.ada)
    return {"ssh": {**site.sshd.settings, "key": f"{folder}/{{account}}"}}


def another_host_key(site: Site, folder: Path) -> dict[str, Any]:
    _, kind, key, *_ = (site.sshd.folder / f"{site.bob}.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{site.sshd.port} {kind} {key}\n")
    return {"ssh": {**site.sshd.settings, "known_hosts": str(folder / "known_hosts")}}


def no_host(site: Site, folder: Path) -> dict[str, Any]:
    (folder / "known_hosts").write_text((site.sshd.folder / "known_hosts").read_text())
    return {"ssh": {**site.sshd.settings, "port": 1}}


@pytest.mark.parametrize(
    ("broken", "status", "said"),
    [
        (a_wrong_key, "problem", "it does not accept the key for your account"),
        (another_host_key, "problem", "its host key is not the one that is known"),
        (no_host, "problem", "it does not answer"),
        (lambda site, folder: {"bin": str(folder)}, "problem", "Slurm does not list jobs"),
        (lambda site, folder: {"slurmrestd": {"url": "http://127.0.0.1:1"}}, "problem", "slurmrestd can't be reached"),
        (lambda site, folder: {"query_account": None}, "problem", "query_account"),
        (lambda site, folder: {"query_account": None, "allowed": {}}, "ok", "forwards, and no jobs"),
    ],
    ids=["key", "host key", "no host", "no squeue", "no slurmrestd", "no query_account", "no jobs"],
)
async def test_broken(
    site: Site, tmp_path: Path, broken: Callable[[Site, Path], dict[str, Any]], status: str, said: str
):
    found = await findings(**site.system(**broken(site, tmp_path)))
    assert any(each[1] == status and said in each[2] for each in found), found
