"""The database's schema, and what happens when it is away or of another version."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from traitlets import TraitError

from jhlauncher.database import CHANNEL, Database, Work
from jhlauncher.tables import metadata, replicas
from tests.conftest import running_service, until
from tests.fake_hub import FakeHub
from tests.postgres import Postgres


def opened(url: str) -> Database:
    database = Database(url=url, retry_timeout=0.3)
    database.validate_settings()
    return database


def upgrade(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jhlauncher", "upgrade-db", f"--Database.url={url}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_migrations_make_what_the_tables_say(database_url: str):
    database = opened(database_url)
    assert database.upgrade()[0] is None
    with database._connected() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


@pytest.mark.asyncio
async def test_empty_database_gets_the_schema(database_url: str):
    for _ in range(2):
        database = opened(database_url)
        await database.start()
        await database.stop()


@pytest.mark.asyncio
async def test_database_without_an_encoding(postgres: Postgres):
    """As PostgreSQL's initdb makes them where no locale is set, in containers."""
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    database = opened(postgres.url("ascii"))
    await database.start()
    assert await database.read(lambda connection: connection.scalar(sa.text("SELECT 'é'"))) == "é"
    await database.stop()


@pytest.mark.asyncio
async def test_schema_of_a_newer_version_is_refused(database_url: str):
    database = opened(database_url)
    database.upgrade()
    with database._connected() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'from the future'"))
    with pytest.raises(TraitError, match="of a newer version"):
        await database.start()
    done = upgrade(database_url)
    assert done.returncode == 2
    assert "of a newer version (from the future)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.asyncio
async def test_schema_without_a_version_is_refused(database_url: str):
    database = opened(database_url)
    with database._connected() as connection:
        connection.execute(sa.text("CREATE TABLE launches (id INTEGER)"))
    with pytest.raises(TraitError, match="jhlauncher upgrade-db"):
        await database.start()


def test_upgrade_db_does_not_listen(database_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUPYTERHUB_SERVICE_URL", "http://no-port")
    assert upgrade(database_url).returncode == 0


def test_upgrade_db(database_url: str):
    for _ in range(2):
        done = upgrade(database_url)
        assert done.returncode == 0, done.stderr
        assert "has version 0005 now" in done.stderr


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql://localhost/x", "must begin with"),
        ("nonsense", "must begin with"),
        ("sqlite://", "must name a file"),
        ("sqlite:////no/such/folder/x.sqlite", "can't be opened"),
        ("postgresql://nobody:secret@127.0.0.1:1/x", "can't be opened"),
    ],
)
def test_wrong_url_is_one_line(url: str, problem: str):
    done = upgrade(url)
    assert done.returncode == 2
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


@pytest.mark.asyncio
async def test_database_that_goes_away(hub: FakeHub, tmp_path: Path):
    """Its loss is said as what it is, and requests work again when it is back."""
    from tests.postgres import Postgres

    postgres = Postgres(tmp_path)
    postgres.start()
    settings = {"Database": {"url": postgres.database(), "retry_timeout": 0.2}}
    async with running_service(hub, **settings) as service:
        assert (await service.launch())[0] == 200
        postgres.stop()
        status, error = await service.request("GET", "launches")
        assert (status, error["reason"]) == (503, "store_unavailable")
        assert "127.0.0.1" not in error["error"]
        postgres.start()
        assert (await service.request("GET", "launches"))[0] == 200
        assert (await service.launch(username="bob"))[0] == 200
    postgres.stop()


@pytest.mark.asyncio
async def test_second_process_takes_a_file_over(hub: FakeHub, tmp_path: Path):
    settings = {"Database": {"url": f"sqlite:///{tmp_path}/x.sqlite"}, "Replicas": {"lease_timeout": 1}}
    async with running_service(hub, **settings) as first:
        async with running_service(hub, **settings) as second:
            await first.app.parts.worker.superseded.wait()
            assert (await second.launch())[0] == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("steps", range(6))
async def test_end_that_comes_together_with_news(hub: FakeHub, tmp_path: Path, steps: int):
    """At whatever step of the loop: a task that did not hear of its cancellation would go on for ever."""
    async with running_service(hub, Database={"url": f"sqlite:///{tmp_path}/x.sqlite"}) as service:
        worker = service.app.parts.worker
        service.app.parts.bound.throttled(0, 100)
        worker._wake.set()
        await asyncio.sleep(0.5)  # it is through with its rounds, and waits for 100 s, or news
        worker._wake.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await worker.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize("steps", range(6))
async def test_end_that_comes_together_with_a_notification(postgres: Postgres, steps: int):
    """At whatever step of the loop: not every psycopg tells a task of its cancellation then."""
    database = opened(postgres.database())
    listening = asyncio.Event()
    database.on_change(lambda topic: None, listening.set)
    await database.start()
    await listening.wait()
    with database._connected() as connection:
        connection.execute(sa.text(f"NOTIFY {CHANNEL}, 'news'"))
    time.sleep(0.2)  # noqa: ASYNC251 - the loop stands still until the notification is there
    for _ in range(steps):
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await database.stop()


async def behind_another(database: Database, works: list[Work[str]]) -> tuple[list[object], int]:
    """What comes of works that have to wait for the same transaction, and how many commits they take."""
    commits: list[object] = []
    gate = threading.Event()
    first = asyncio.create_task(database.write(lambda connection: gate.wait(20), alone=True))
    others = [asyncio.create_task(database.write(work, alone=True)) for work in works]
    await until(lambda: len(database._line) == len(works))
    sa.event.listen(database._engine, "commit", commits.append)
    gate.set()
    assert await first
    return await asyncio.gather(*others, return_exceptions=True), len(commits) - 1


@pytest.mark.asyncio
async def test_what_waits_is_done_in_one_transaction(database_url: str):
    database = opened(database_url)
    await database.start()
    told = []

    def work(number: int, connection: sa.Connection) -> str:
        database.after(connection, lambda: told.append(number))
        connection.execute(replicas.insert(), {"id": str(number), "alive_until": 0})
        return f"done {number}"

    def impossible(connection: sa.Connection) -> str:
        connection.execute(replicas.insert(), {"id": "1", "alive_until": 0})
        return "never"

    works: list[Work[str]] = [partial(work, number) for number in range(10)]
    assert await behind_another(database, works) == ([f"done {number}" for number in range(10)], 1)
    assert told == list(range(10))
    await database.write(lambda connection: connection.execute(replicas.delete()))
    works.insert(5, impossible)
    results, _ = await behind_another(database, works)
    assert isinstance(results.pop(5), sa.exc.IntegrityError)
    assert results == [f"done {number}" for number in range(10)], "the others are done all the same"
    assert told == list(range(10)) * 2, "and nothing is told twice"
    await database.stop()
