"""What a real Slurm and a real cluster can't be made to do: answers at the wrong moment, and what may be left of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from traitlets.config import Config

from jhlauncher.database import Database
from jhlauncher.errors import KeyReused, LauncherError, LimitReached, StoreUnavailable, Temporary
from jhlauncher.userjobs import userjobs as module
from jhlauncher.userjobs.errors import AnswerLost, JobConflict, JobRefused, NoAccount, SystemUnavailable
from jhlauncher.userjobs.forwards import Forwards
from jhlauncher.userjobs.jobs import JobStatus, parse_jobs, refusal
from jhlauncher.userjobs.requests import Submission, UserJobRequest
from jhlauncher.userjobs.rows import Rows, UserJob
from jhlauncher.userjobs.systems import Owner, System, Systems
from jhlauncher.userjobs.userjobs import UserJobs

pytestmark = pytest.mark.asyncio

ADA, BOB = Owner("", "ada"), Owner("", "bob")


class ScriptedSlurm:
    """A Slurm whose answers a test decides."""

    def __init__(self) -> None:
        self.said: list[JobStatus] = []
        self.problem: Exception | None = None
        self.submitted: list[Submission] = []
        self.cancelled: list[int] = []
        self.looks = 0
        self.submits: Callable[[], Awaitable[int]] | None = None

    async def submit(self, account: str, submission: Submission) -> int:
        self.submitted.append(submission)
        return await self.submits() if self.submits else 100 + len(self.submitted)

    async def cancel(self, account: str, job: int) -> None:
        self.cancelled.append(job)

    async def jobs(self, accounts: set[str]) -> list[JobStatus]:
        self.looks += 1
        if self.problem:
            raise self.problem
        return list(self.said)


class ScriptedExposure:
    """Names in a cluster, which can be slow, or away."""

    def __init__(self) -> None:
        self.there: dict[str, str] = {}
        self.away = False
        self.open = asyncio.Event()
        self.open.set()

    async def add(self, job: UserJob) -> None:
        await self.open.wait()
        if self.there.setdefault(job.service, job.key) != job.key:
            raise JobConflict("there")
        if self.away:
            raise Temporary("away, and it was made all the same")

    async def remove(self, job: UserJob) -> None:
        await self.open.wait()
        if self.away:
            raise Temporary("away")
        if self.there.get(job.service) == job.key:
            del self.there[job.service]

    def addresses(self, job: UserJob) -> dict[str, str]:
        return {}


class World:
    """User jobs on a system of which nothing is real but the ports here."""

    def __init__(self, database: Database) -> None:
        self.slurm, self.exposure, self.rows = ScriptedSlurm(), ScriptedExposure(), Rows(database)
        self.system: dict[str, Any] = {
            "local": True, "query_account": "daemon", "accounts": {"ada": "nobody", "bob": "daemon"},
            "allowed": {"partitions": ["batch"]}, "target_nodes": ["localhost"], "max_jobs": 1000, "max_ports": 10,
        }  # fmt: skip
        self.forwards = Forwards(ports="18000-18999", retry_delay=0.05)

    def make(self) -> UserJobs:
        parent = Systems(config=Config({"JobWatch": {"interval": 0.1, "lost_grace": 0.5}}))
        systems = Systems(systems={"cluster": self.system})
        return UserJobs(self.rows, systems, self.forwards, self.exposure, parent=parent)

    async def restart(self) -> None:
        await self.jobs.stop()
        await self.start()

    async def start(self) -> None:
        self.jobs = self.make()
        await self.jobs.start()

    async def submit(self, name: str = "web", owner: Owner = ADA, ports: bool = True) -> UserJob:
        body = {
            "service": name,
            "hostname": "cluster",
            "job": {"command": ["true"]},
            "ports": {80: 80} if ports else {},
        }
        return (await self.jobs.create(owner, UserJobRequest.model_validate(body)))[0]

    async def forward(self, name: str = "forward", owner: Owner = ADA, node: str = "localhost") -> UserJob:
        body = {"service": name, "hostname": "cluster", "target_node": node, "ports": {80: 80}}
        return (await self.jobs.create(owner, UserJobRequest.model_validate(body)))[0]

    def says(self, *jobs: UserJob, **more: Any) -> None:
        """What Slurm says of jobs from now on: they run on n1, if nothing else is said."""
        for job in jobs:
            known = [status for status in self.slurm.said if status.id != job.job_id]
            values = {"state": "RUNNING", "reason": "", "nodes": "n1", "node": "n1", "account": job.account, **more}
            self.slurm.said = [*known, JobStatus(id=job.job_id or 0, marker=job.marker, **values)]

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not await _result(condition()):
                await asyncio.sleep(0.02)

    async def until_state(self, job: UserJob, state: str) -> UserJob:
        async def there() -> bool:
            self.row = await self.rows.get(job.key)
            return self.row is not None and self.row.state == state

        await self.until(there)
        assert self.row
        return self.row

    async def looks(self, number: int = 2) -> None:
        """Return after so many more queries of Slurm."""
        most = self.slurm.looks + number
        await self.until(lambda: self.slurm.looks >= most)

    def node_of(self, job: UserJob) -> str | None:
        forward = self.forwards._forwards.get(job.key)
        return forward.job.target_node if forward else None


async def _result(value: Any) -> Any:
    return await value if isinstance(value, Awaitable) else value


@pytest_asyncio.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    database = Database(url=f"sqlite:///{tmp_path}/jobs.sqlite", retry_timeout=0)
    database.validate_settings()
    await database.start()
    world = World(database)
    monkeypatch.setattr(module, "slurm_of", lambda *_: world.slurm)
    await world.start()
    yield world
    await world.jobs.stop()
    await database.stop()


# -- forwards lead where they may


async def test_a_forward_follows_its_job_to_another_node(world: World):
    job = await world.submit()
    world.says(job)
    await world.until(lambda: world.node_of(job) == "n1")
    world.says(job, nodes="n2", node="n2")
    await world.until(lambda: world.node_of(job) == "n2")


async def test_a_forward_ends_with_the_job_that_it_is_allowed_for(world: World):
    job = await world.submit("job", ports=False)
    world.says(job)
    await world.until_state(job, "RUNNING")
    forward = await world.forward(node="n1")
    assert world.node_of(forward) == "n1"
    world.says(job, state="COMPLETED")
    await world.until(lambda: world.node_of(forward) is None)
    assert "No job of yours runs on n1" in world.jobs.view(forward).problem
    again = await world.submit("again", ports=False)
    world.says(again)
    await world.until(lambda: world.node_of(forward) == "n1")


async def test_a_forward_ends_with_the_account(world: World):
    forward = await world.forward()
    await world.jobs.stop()
    del world.system["accounts"]["ada"]
    await world.start()
    assert world.node_of(forward) is None
    assert "account" in world.jobs.view(forward).problem
    with pytest.raises(NoAccount):
        await world.forward("another")


async def test_patterns_of_nodes_are_of_names_in_their_domain():
    system = System.model_validate({"local": True, "target_nodes": ["node*", "*.cluster.example", "10.0.*.*"]})
    for node in ("node1", "a.cluster.example", "10.0.3.4"):
        assert system.reaches(node), node
    for node in ("node1.attacker.example", "a.b.cluster.example", "10.0.attacker.example", "node::1", "10.0.3.4.5"):
        assert not system.reaches(node), node


async def test_a_port_is_nobody_elses_for_a_while(world: World):
    world.forwards.ports = "18000-18029"
    job = await world.forward()
    [port] = [each.local for each in job.forwards]
    await world.jobs.remove(ADA, "forward")
    for number in range(40):
        theirs = await world.forward(f"bobs-{number}", owner=BOB)
        assert [each.local for each in theirs.forwards] != [port]
        await world.jobs.remove(BOB, f"bobs-{number}")
    assert [each.local for each in (await world.forward()).forwards] == [port], "her own is hers again"


async def test_a_library_that_fails_does_not_end_a_forward(world: World):
    gateway = world.jobs._connecting.gateways["cluster"]
    usual, failed = gateway.connected, asyncio.Event()

    @contextlib.asynccontextmanager
    async def failing(account: str) -> AsyncIterator[Any]:
        failed.set()
        raise RuntimeError("of a library")
        yield

    gateway.connected = failing  # type: ignore[method-assign]
    job = await world.forward()
    await failed.wait()
    await world.until(lambda: world.jobs.problem(job) == "It can't be forwarded.")
    gateway.connected = usual  # type: ignore[method-assign]
    await world.until(lambda: world.jobs.view(job).forwarding)


# -- a job is there once, and known


async def test_the_database_is_away_when_slurm_answers(world: World, monkeypatch: pytest.MonkeyPatch):
    async def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as while_away:
        while_away.setattr(world.rows, "submitted", away)
        with pytest.raises(AnswerLost):
            await world.submit()
    row = await world.rows.find(ADA, "web")
    assert row
    world.slurm.said = [JobStatus(101, "RUNNING", "", row.account, row.marker, "n1", "n1")]
    assert (await world.until_state(row, "RUNNING")).job_id == 101


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Batch job submission failed: Invalid partition name specified", JobRefused),
        ("Batch job submission failed: Socket timed out on send/recv operation", AnswerLost),
        ("Batch job submission failed: Zero Bytes were transmitted or received", AnswerLost),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", SystemUnavailable),
    ],
)
async def test_what_slurms_words_mean(words: str, kind: type[LauncherError]):
    assert type(refusal(words)) is kind


async def test_a_submission_is_not_given_up_while_it_is_under_way(world: World):
    other = await world.submit("other", ports=False)
    world.says(other)
    world.exposure.open.clear()
    posting = asyncio.create_task(world.submit())
    await world.looks(8)  # for longer than `lost_grace`
    row = await world.rows.find(ADA, "web")
    assert row
    assert row.state == "SUBMITTING"
    world.exposure.open.set()
    job = await posting
    assert job.state == "PENDING"


async def test_a_job_that_slurm_did_not_know_for_a_while(world: World):
    """As of an account that lost its right to see all; it comes back, and can be cancelled before it does."""
    job = await world.submit()
    world.says(job)
    await world.until(lambda: world.node_of(job) == "n1")
    world.slurm.said = []
    await world.until_state(job, "UNKNOWN")
    assert world.node_of(job) is None
    world.says(job)
    await world.until_state(job, "RUNNING")
    await world.until(lambda: world.node_of(job) == "n1")
    world.slurm.said = []
    await world.until_state(job, "UNKNOWN")
    await world.jobs.remove(ADA, "web")
    assert world.slurm.cancelled == [job.job_id]
    assert not world.exposure.there


async def test_a_number_that_is_none(world: World):
    async def huge() -> int:
        return 10**30

    world.slurm.submits = huge
    with pytest.raises(OverflowError):
        await world.submit(ports=False)
    row = await world.rows.find(ADA, "web")
    assert row
    await world.until_state(row, "NOT_SUBMITTED")


async def test_a_mark_that_somebody_copied(world: World):
    async def lost() -> int:
        raise AnswerLost("lost")

    world.slurm.submits = lost
    with pytest.raises(AnswerLost):
        await world.submit()
    row = await world.rows.find(ADA, "web")
    assert row
    world.slurm.said = [
        JobStatus(7, "RUNNING", "", row.account, row.marker, "n1", "n1"),
        JobStatus(8, "RUNNING", "", "daemon", row.marker, "n1", "n1"),
    ]
    assert (await world.until_state(row, "RUNNING")).job_id == 7


async def test_the_same_name_at_once(world: World):
    done = await asyncio.gather(*(world.submit() for _ in range(6)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) == ["JobConflict"] * 5 + ["UserJob"]
    assert len(world.slurm.submitted) == 1


async def test_a_transaction_that_is_done_again(world: World):
    job = UserJob("", "ada", "x", "cluster", "nobody", job={}, state="SUBMITTING")
    system = System.model_validate(world.system)
    assert (await world.rows.begin(job, system)).key == (await world.rows.begin(job, system)).key == job.key


# -- nothing is left


async def test_removed_while_slurm_says_that_it_runs(world: World):
    job = await world.submit()
    other = await world.submit("other", ports=False)
    world.exposure.open.clear()
    removing = asyncio.create_task(world.jobs.remove(ADA, "web"))
    await world.until(lambda: world.slurm.cancelled)
    world.says(job, other)  # an answer from before
    await world.looks()
    world.exposure.open.set()
    await removing
    await world.looks()
    assert await world.rows.get(job.key) is None
    assert world.node_of(job) is None


async def test_a_name_that_could_not_be_taken_away_is_later(world: World):
    job = await world.submit()
    world.exposure.away = True
    world.says(job, state="COMPLETED")
    await world.until_state(job, "COMPLETED")
    with pytest.raises(Temporary):
        await world.forward("web")
    assert (await world.rows.find(ADA, "web")) is not None
    world.exposure.away = False
    await world.until(lambda: "web" not in world.exposure.there)
    assert (await world.forward("web")).job is None


async def test_a_name_that_was_made_and_then_failed(world: World):
    world.exposure.away = True
    with pytest.raises(Temporary):
        await world.forward()
    assert world.exposure.there
    world.exposure.away = False
    await world.until(lambda: not world.exposure.there)


async def test_ended_before_the_name_was_made(world: World):
    """The process ends between row and Service; the next one makes it, and so does the same request."""
    job = await world.forward()
    world.exposure.there.clear()
    await world.restart()
    assert world.exposure.there == {"forward": job.key}
    world.exposure.there.clear()
    assert (await world.forward()).key == job.key
    assert world.exposure.there == {"forward": job.key}


async def test_a_name_that_could_not_be_made_at_the_start_is_later(world: World):
    job = await world.forward()
    world.exposure.there.clear()
    world.exposure.away = True
    await world.restart()
    assert world.node_of(job) is None
    assert "away" in world.jobs.view(job).problem
    world.exposure.away = False
    await world.until(lambda: world.node_of(job))
    assert world.exposure.there == {"forward": job.key}


async def test_removed_while_slurm_is_asked(world: World):
    """Its forward does not come back with an answer from before."""
    job = await world.submit("job", ports=False)
    world.says(job)
    await world.until_state(job, "RUNNING")
    forward = await world.forward(node="n1")
    usual, asked, go = world.slurm.jobs, asyncio.Event(), asyncio.Event()

    async def slow(accounts: set[str]) -> list[JobStatus]:
        asked.set()
        await go.wait()
        return await usual(accounts)

    world.slurm.jobs = slow  # type: ignore[method-assign]
    await asked.wait()
    await world.jobs.remove(ADA, "forward")
    go.set()
    await world.looks()
    assert world.node_of(forward) is None


async def test_a_key_that_is_sent_with_another_request(world: World):
    async def post(name: str = "web", port: int = 80) -> UserJob:
        body = {"service": name, "hostname": "cluster", "job": {"command": ["true"]}, "ports": {80: port}}
        return (await world.jobs.create(ADA, UserJobRequest.model_validate(body), "key"))[0]

    assert (await post()).key == (await post()).key
    with pytest.raises(KeyReused):
        await post(port=81)


# -- one does not hold up others


async def test_odd_jobs_of_others_hide_nobodys():
    good = {"job_id": 1, "job_state": "RUNNING", "nodes": "n1", "user_name": "ada"}
    odd: list[Any] = [
        {"job_id": 2, "job_state": "RUNNING", "nodes": "n[a-b]"}, {"job_id": None, "job_state": "RUNNING"}, "x", None,
        {"job_state": "RUNNING"}, {"job_id": 3, "job_state": "FAILED", "exit_code": 4294967294},
        {"job_id": 4, "job_state": "FAILED", "exit_code": {"signal": 9, "return_code": 1}},
        {"job_id": 5, "job_state": "RUNNING", "nodes": "n", "start_time": "x"},
    ]  # fmt: skip
    found = {status.id: status.state for status in parse_jobs(json.dumps({"jobs": [*odd, good]}))}
    assert found[1] == "RUNNING"
    assert found[2] == "", "it is there, and nothing is known of it"


async def test_a_job_that_can_not_be_written_down_hides_no_other(world: World):
    odd, other = await world.submit("odd", ports=False), await world.submit("other", ports=False)
    world.says(odd, exit_code={"what": "ever"})
    world.says(other)
    await world.until_state(other, "RUNNING")
    assert world.jobs.watching.problem("cluster") == ""


async def test_a_job_of_which_nothing_can_be_read_goes_on(world: World):
    job = await world.submit(ports=False)
    world.says(job)
    await world.until_state(job, "RUNNING")
    world.says(job, state="")
    await world.looks(8)
    row = await world.rows.get(job.key)
    assert row
    assert row.state == "RUNNING"


async def test_what_has_ended_is_kept_for_a_while_and_not_all(world: World):
    system = System.model_validate(world.system)
    for number in range(120):
        ended = UserJob("", "ada", f"x{number}", "cluster", "nobody", job={}, state="COMPLETED", job_id=number)
        await world.rows.begin(ended, system)
    assert 100 <= len(await world.jobs.all_of(ADA)) <= 101


async def test_streams_of_a_user_are_bounded(world: World):
    async def follow() -> None:
        async for _ in world.jobs.follow_all(ADA):
            pass

    streams = [asyncio.create_task(follow()) for _ in range(20)]
    await world.until(lambda: world.jobs._streams[ADA] == 20)
    with pytest.raises(LimitReached):
        await follow()
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    assert not world.jobs._streams


async def test_who_waits_for_slurm_is_told_when_the_service_stops(world: World):
    asked = asyncio.Event()

    async def never(accounts: set[str]) -> list[JobStatus]:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.slurm.jobs = never  # type: ignore[method-assign]
    forwarding = asyncio.create_task(world.forward(node="n1"))
    await asked.wait()
    await world.jobs.watching.stop()
    with pytest.raises(SystemUnavailable):
        await forwarding


async def test_who_asks_for_a_node_while_slurm_is_away_is_told_at_once(world: World):
    job = await world.submit(ports=False)
    world.says(job)
    world.slurm.problem = SystemUnavailable("away")
    await world.until(lambda: world.jobs.watching.problem("cluster"))
    with pytest.raises(SystemUnavailable, match="unknown at the moment"):
        await world.forward(node="n1")


async def test_who_asks_for_a_node_when_slurm_is_back_may_have_it(world: World):
    """Though nobody has a job, and so nobody looks."""
    world.slurm.problem = SystemUnavailable("away")
    with pytest.raises(SystemUnavailable):
        await world.forward(node="n1")
    world.slurm.problem = None
    await world.until(lambda: not world.jobs.watching.problem("cluster"))
    world.slurm.said = [JobStatus(1, "RUNNING", "", "nobody", "", "n1", "n1")]
    assert (await world.forward(node="n1")).target_node == "n1"


async def test_who_asks_while_slurm_is_asked_for_others_waits_for_the_next_answer(world: World):
    job = await world.submit(ports=False)
    accounts_asked: list[set[str]] = []
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(accounts: set[str]) -> list[JobStatus]:
        accounts_asked.append(accounts)
        asked.set()
        await go.wait()
        return [JobStatus(number, "RUNNING", "", account, "", "n1", "n1") for number, account in enumerate(accounts)]

    world.slurm.jobs = slow  # type: ignore[method-assign]
    await asked.wait()
    forwarding = asyncio.create_task(world.forward(owner=BOB, node="n1"))
    await world.until(lambda: "daemon" in world.jobs.watching._watches["cluster"]._asking)
    go.set()
    assert (await forwarding).target_node == "n1"
    assert accounts_asked[0] == {job.account}
