"""Slurm through its commands: ``sbatch``, ``squeue`` and ``scancel``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from .errors import AnswerLost, JobRefused, SystemUnavailable
from .gateway import Done, Gateway
from .jobs import JobStatus, parse_jobs
from .requests import Submission

_LONGEST_LIST = 256 * 1024**2
"""Characters of a list of jobs; one job has some 4000."""
_NUMBER = re.compile(r"(\d+)(?:;\S*)?")
_NOT_THERE = ("unable to contact slurm controller", "connection refused", "zero bytes were transmitted")
_GONE = ("invalid job id", "already completing or completed", "already finished")


class Commands:
    """Slurm's commands, over a gateway.

    Args:
        gateway: to where they are.
        folder: in which they are; "": the account's PATH says so.
        query_account: with whose right all jobs are looked at.

    """

    def __init__(self, gateway: Gateway, folder: str, query_account: str) -> None:
        self._gateway = gateway
        self._folder = folder.rstrip("/") + "/" if folder else ""
        self._query_account = query_account

    async def submit(self, account: str, submission: Submission) -> int:
        """Submit a job; its number."""
        argv = [f"{self._folder}sbatch", *_options(submission)]
        done = await self._gateway.run(account, argv, text=submission.script, environment=submission.environment)
        if done.status:
            self._lament(done, lost=("timed out", "timeout"))
            raise JobRefused(f"Slurm does not take the job: {done.complaint}")
        number = _NUMBER.fullmatch((done.stdout.strip().splitlines() or [""])[-1])
        if not number:
            raise AnswerLost("Slurm took the job, perhaps, and did not say its number.")
        return int(number[1])

    async def cancel(self, account: str, job: int) -> None:
        """Cancel a job."""
        done = await self._gateway.run(account, [f"{self._folder}scancel", str(job)])
        if done.status and not any(word in done.stderr.lower() for word in _GONE):
            raise SystemUnavailable(f"Slurm does not cancel job {job}: {done.complaint}")

    async def jobs(self, accounts: set[str]) -> list[JobStatus]:
        """The jobs of these accounts."""
        argv = [f"{self._folder}squeue", "--json", "--states=all", f"--user={','.join(sorted(accounts))}"]
        done = await self._gateway.run(self._query_account, argv, most=_LONGEST_LIST)
        if done.status:
            raise SystemUnavailable(f"Slurm does not list jobs: {done.complaint}")
        return await asyncio.to_thread(parse_jobs, done.stdout)  # it may be large

    def _lament(self, done: Done, lost: Sequence[str]) -> None:
        """Raise an error if it was not Slurm that refused."""
        words = done.stderr.lower()
        if any(word in words for word in _NOT_THERE):
            raise SystemUnavailable(f"Slurm does not answer: {done.complaint}")
        if any(word in words for word in lost):
            raise AnswerLost(f"Slurm did not answer in time: {done.complaint}")
        if "filenotfounderror" in words:
            raise SystemUnavailable("There is no sbatch on the system.")


def _options(submission: Submission) -> list[str]:
    """Of sbatch; each a single argument, whose value can't be taken for an option."""
    options = {
        "job-name": submission.name,
        "comment": submission.marker,
        "partition": submission.partition,
        "time": submission.minutes,
        "nodes": submission.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": submission.cpus,
        "mem": submission.memory and f"{submission.memory}M",
        "gpus-per-node": submission.gpus or None,
        "account": submission.project,
        "chdir": submission.working_directory,
        "output": submission.output,
    }
    # PBS's options in a script would count as well
    fixed = ["--parsable", "--ignore-pbs", "--export=ALL"]
    return fixed + [f"--{name}={value}" for name, value in options.items() if value is not None]
