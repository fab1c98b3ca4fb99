"""Slurm through its commands: ``sbatch``, ``squeue`` and ``scancel``."""

from __future__ import annotations

import asyncio
import re

from ..errors import LauncherError
from .errors import AnswerLost, SystemUnavailable
from .gateway import NOT_FOUND, Done, Gateway
from .jobs import JobStatus, is_gone, parse_jobs, refusal
from .requests import Submission

_LONGEST_LIST = 256 * 1024**2
"""Characters of a list of jobs; one job has some 4000."""
_NUMBER = re.compile(r"(\d{1,18})(?:;\S*)?")


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
            raise _of_sbatch(done)
        number = _NUMBER.fullmatch((done.stdout.strip().splitlines() or [""])[-1])
        if not number:
            raise AnswerLost("Slurm took the job, perhaps, and did not say its number.")
        return int(number[1])

    async def cancel(self, account: str, job: int) -> None:
        """Cancel a job."""
        done = await self._gateway.run(account, [f"{self._folder}scancel", str(job)])
        if done.status and not is_gone(done.stderr):
            raise SystemUnavailable(f"Slurm does not cancel job {job}: {done.complaint}")

    async def jobs(self, accounts: set[str]) -> list[JobStatus]:
        """The jobs of these accounts."""
        argv = [f"{self._folder}squeue", "--json", "--states=all", f"--user={','.join(sorted(accounts))}"]
        done = await self._gateway.run(self._query_account, argv, most=_LONGEST_LIST)
        if done.status:
            raise SystemUnavailable(f"Slurm does not list jobs: {done.complaint}")
        return await asyncio.to_thread(parse_jobs, done.stdout)  # it may be large


def _of_sbatch(done: Done) -> LauncherError:
    """What it means that sbatch failed; only its own word is one of Slurm's, and no signal or program before it."""
    if done.status == NOT_FOUND:
        return SystemUnavailable("There is no sbatch on the system.")
    words = [
        line.partition("sbatch: error:")[2].strip() for line in done.stderr.splitlines() if "sbatch: error:" in line
    ]
    if done.status == 1 and words:
        return refusal("; ".join(words[-2:]))
    return AnswerLost("sbatch was ended before it said whether it has submitted the job.")


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
