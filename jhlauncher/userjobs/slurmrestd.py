"""Slurm through its REST API (https://slurm.schedmd.com/rest_api.html), v0.0.37 and later."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from .errors import AnswerLost, SystemUnavailable
from .gateway import PATH
from .jobs import JobStatus, is_gone, parse_jobs, refusal
from .requests import Submission
from .systems import Slurmrestd

_STRUCTURED = 39
"""From v0.0.39 on, numbers are objects and the environment is a list."""


class Rest:
    """Slurm's REST API.

    Args:
        settings: where it is.
        query_account: with whose right all jobs are looked at.
        timeout: seconds for an answer.

    """

    def __init__(self, settings: Slurmrestd, query_account: str, timeout: float) -> None:
        self._settings = settings
        self._query_account = query_account
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._structured = int(settings.api_version.rpartition(".")[2]) >= _STRUCTURED

    async def submit(self, account: str, submission: Submission) -> int:
        """Submit a job; its number."""
        document = await self._ask(account, "POST", "job/submit", self._body(account, submission))
        if errors := _errors(document):
            raise refusal(errors)
        result = document.get("result")
        number = document.get("job_id") or (result.get("job_id") if isinstance(result, dict) else None)
        if not isinstance(number, int) or not 0 < number < 2**62:
            raise AnswerLost("Slurm took the job, perhaps, and did not say its number.")
        return number

    async def cancel(self, account: str, job: int) -> None:
        """Cancel a job."""
        errors = _errors(await self._ask(account, "DELETE", f"job/{job}"))
        if errors and not is_gone(errors):
            raise SystemUnavailable(f"Slurm does not cancel job {job}: {errors}")

    async def jobs(self, accounts: set[str]) -> list[JobStatus]:
        """All jobs."""
        text = await self._text(self._query_account, "GET", "jobs")
        return await asyncio.to_thread(parse_jobs, text)

    def _body(self, account: str, submission: Submission) -> dict[str, Any]:
        number: Any = (lambda value: {"set": True, "number": value}) if self._structured else int
        # slurmrestd takes a job's environment for all of it, and refuses an empty one
        usual = {"PATH": PATH, "HOME": submission.home, "USER": account, "LOGNAME": account}
        environment: Any = {**usual, **submission.environment}
        job = {
            "name": submission.name,
            "comment": submission.marker,
            "partition": submission.partition,
            "time_limit": number(submission.minutes),
            "nodes": str(submission.nodes) if self._structured else submission.nodes,
            "tasks": submission.nodes,
            "cpus_per_task": submission.cpus,
            "memory_per_node": None if submission.memory is None else number(submission.memory),
            "tres_per_node": f"gres:gpu:{submission.gpus}" if submission.gpus else None,
            "account": submission.project,
            "current_working_directory": submission.working_directory,
            "standard_output": submission.output,
            "environment": [f"{name}={value}" for name, value in environment.items()]
            if self._structured
            else environment,
        }
        return {"script": submission.script, "job": {name: value for name, value in job.items() if value is not None}}

    async def _ask(self, account: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
        text = await self._text(account, method, path, body)
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise AnswerLost("slurmrestd's answer is not JSON.")
        return document

    async def _text(self, account: str, method: str, path: str, body: Any = None) -> str:
        """What slurmrestd answers.

        Raises:
            SystemUnavailable, AnswerLost: it did not answer.

        """
        address = self._settings.url.replace("{account}", account)
        socket = urlsplit(address).path if address.startswith("unix:") else None
        base = "http://localhost" if socket else address
        try:
            headers = await self._headers(account)
            tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._settings.cafile)
            connector = aiohttp.UnixConnector(socket) if socket else aiohttp.TCPConnector(ssl=tls)
            async with (
                aiohttp.ClientSession(connector=connector, timeout=self._timeout, headers=headers) as session,
                session.request(
                    method, f"{base}/slurm/{self._settings.api_version}/{path}", json=body, allow_redirects=False
                ) as response,
            ):
                if response.status in (401, 403):
                    raise SystemUnavailable("slurmrestd does not accept the token for your account.")
                return await response.text(encoding="utf-8", errors="replace")  # a comment may have any bytes
        except aiohttp.ClientConnectorError as error:
            raise SystemUnavailable("slurmrestd can't be reached.") from error
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise AnswerLost("slurmrestd did not answer.") from error

    async def _headers(self, account: str) -> dict[str, str]:
        headers = {"X-SLURM-USER-NAME": account}
        if self._settings.token_file:
            path = Path(self._settings.token_file.replace("{account}", account))
            try:
                headers["X-SLURM-USER-TOKEN"] = (await asyncio.to_thread(path.read_text, encoding="ascii")).strip()
            except (OSError, ValueError) as error:
                raise SystemUnavailable("The token for your account can't be read.") from error
        return headers


def _errors(document: dict[str, Any]) -> str:
    """What it complains of."""
    errors = document.get("errors") or []
    each = errors if isinstance(errors, list) else [errors]
    texts = [(error.get("error") or error.get("description")) if isinstance(error, dict) else error for error in each]
    return "; ".join(map(str, texts))[:500]
