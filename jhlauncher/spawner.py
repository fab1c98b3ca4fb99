"""Runs inside the Hub: applies a launch to the spawner, if it comes from the launcher, and sees it through.

`LauncherSpawnerMixin` goes before any spawner class. At a start whose ``user_options`` carry launch options it checks
their signature, applies the spec to the spawner's traits, and lets the spawner start. Every start has a spawner object
of its own in JupyterHub, so that nothing leaks into the next one; containers from the configuration are replaced by
new ones, never changed in place.

Options that were applied are marked ``applied``, in the Hub's database as soon as there is a server to be found or the
start has failed: a later start from the Hub's own page, for which the Hub reuses the stored options, is then a plain
one. They are marked ``up`` once the Hub has seen the server answer: its own word ``ready`` also holds for a start that
was just cancelled. The progress tells the same mark just before ``ready``, so that who follows it need not ask. Why a
launch failed is left there, sealed, under ``failure``, and that somebody stopped it, under ``ended``. Options that are
refused are removed from the database, so that they refuse one start and not all that follow.

A Hub that dies in the middle of a start finds the server again when it comes back, since what it needs to know of it
is kept as soon as there is something (`_remember`); that such a server is of a launch, ``taken`` proves. One that it
does not find leaves options that are neither up nor ended: the launcher starts it anew.

When a server has stopped, whoever stopped it, its tokens are revoked here, and the launcher is told.

How a start goes, and which method of an engine (`jhlauncher.engines`) has a say::

    take the launch -> apply_launch: apply_image, ..., apply_volumes, check_volumes
                    -> the spawner's own start -> wait until the server answers
                       meanwhile watch_start tells the steps, and returns as soon as the engine knows of a failure
    when it fails   -> collect_evidence while the container is still there -> the Hub stops it -> remove_remains

All of that but the first line also holds for plain starts.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunparse

import aiohttp
from jupyterhub.utils import make_ssl_context, maybe_future, url_escape_path, url_path_join, wait_for_http_server
from sqlalchemy.orm import object_session
from tornado.web import HTTPError
from traitlets import Bool, Dict, Float, TraitError, Unicode, default, validate
from traitlets.config import Configurable

from . import environment
from .errors import InvalidRequest
from .failures import OUT_OF_MEMORY, Evidence, Failure, Reason, StartFailed, hide, secrets_of
from .models import Cpu, Gpu, LaunchSpec, Memory, Phase, Volume
from .signing import KEY_ENV, OPTIONS_KEY, BadSignature, Signer, token_note
from .steps import Steps

try:
    from jupyterhub.spawner import SpawnException
except ImportError:  # JupyterHub 5
    SpawnException = None

Result = TypeVar("Result")

_used: dict[str, float] = {}
"""Signatures that have started a server, with the time after which nobody could use them anyway."""

_notices: set[asyncio.Task[None]] = set()
"""Those under way to the launcher."""

_NOTICE_TIMEOUT = 5
"""Seconds for telling the launcher something."""

_MEMORY_INTERVAL = 60.0
"""Seconds between two notices that a program of one server took too much memory."""

_EVIDENCE_TIMEOUT = 10
"""Seconds for collecting what an engine knows of a failure."""


class LauncherSpawnerMixin(Configurable):
    """Makes a spawner class understand launches.

    What the class has a trait for is applied, and the rest refused by name. A class that knows better overrides
    ``apply_image`` and its siblings (which may be coroutines); each gets a validated value and may raise `refuse`'s
    error.
    """

    if TYPE_CHECKING:  # what the spawner class brings
        user: Any
        name: str
        user_options: dict[str, Any]
        environment: dict[str, Any]
        orm_spawner: Any
        server: Any
        ready: bool
        start_timeout: int
        http_timeout: int
        api_token: str
        log: logging.Logger
        _log_name: str

        def get_env(self) -> dict[str, str]: ...

        def get_state(self) -> dict[str, Any]: ...

    signing_key = Unicode(
        help="""The secret shared with the launcher service, at least 32 characters; install_launcher sets it.

        Default: $JHLAUNCHER_SIGNING_KEY. With none, launches are refused.
        """
    ).tag(config=True)
    signature_lifetime = Float(
        300, help="Seconds for which signed launch options may start a server, and clocks may differ."
    ).tag(config=True)
    allow_token_in_url = Bool(
        True,
        help="""Let launched servers accept ?token=... in their URL, as clients of `POST containers` expect.

        Sets JUPYTERHUB_ALLOW_TOKEN_IN_URL=1 in the server's environment. A URL with a token opens the server for
        whoever has it until the token expires; turn this off where all clients can send a header.
        """,
    ).tag(config=True)

    home_mount = Unicode("/home/jovyan", help="The home of the user that images have.").tag(config=True)
    persist_packages = Dict(
        help="""Where images have their Python, so that what people install with pip stays: {image: python}.

        Images are shell patterns, the first that matches counts; python is "user" for one that takes pip install
        --user, as conda's and a system's do, and the version, "3.13", for a virtual environment, which does not.
        Packages are then installed into .local below home_mount, in launches with a volume there. Default: no images.
        """
    ).tag(config=True)

    launcher_url = Unicode(
        help="""Where the launcher service listens, http://HOST:PORT; it is told when a server has ended.

        install_launcher sets it. With none, the launcher finds out by itself, within Reconciler.reconcile_interval.
        """
    ).tag(config=True)
    launcher_path = Unicode(
        "/services/launcher/", help="The launcher service's path, below the Hub's base_url; install_launcher sets it."
    ).tag(config=True)

    @validate("persist_packages")
    def _valid_persist_packages(self, proposal: Any) -> Any:
        for image, python in proposal.value.items():
            if not (isinstance(python, str) and re.fullmatch(r"user|3\.\d+", python)):
                raise TraitError(f'persist_packages[{image!r}] must be "user" or a version like "3.13", not {python!r}')
        return proposal.value

    @default("signing_key")
    def _default_signing_key(self) -> str:
        return environment.text(KEY_ENV)

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Any:
        """Nothing: launch options are applied after all hooks, so that none can undo them."""
        return lambda spawner, user_options: None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._configured: dict[str, Any] = {}
        self._start_limit = float(self.start_timeout)
        self._reset()

    def _reset(self) -> None:
        """Forget the start before."""
        self._steps = Steps()
        self._spec: LaunchSpec | None = None  # of the launch that this start is
        self._suspicion: Failure | None = None  # what a start that takes too long suffers from
        self._hidden: list[str] | None = None  # what must not be shown
        self._fate: Failure | None = None  # why it ended by itself
        self._memory_told = -_MEMORY_INTERVAL  # when its use of memory was last told of

    # -- what the Hub calls

    async def run_auth_state_hook(self, auth_state: Any) -> Any:
        """The first thing of a start that the Hub calls."""
        self._renew()
        return await maybe_future(super().run_auth_state_hook(auth_state))  # type: ignore[misc]

    async def run_pre_spawn_hook(self) -> Any:
        """Take the launch options before any hook can fail: they are good for one start, whatever becomes of it."""
        self._take_launch()
        result = await maybe_future(super().run_pre_spawn_hook())  # type: ignore[misc]
        # the Hub's own limit gets room for waiting until the server answers, and for finding out why it doesn't
        self._start_limit = self.start_timeout
        self.start_timeout = self.start_timeout + self.http_timeout + 3 * _EVIDENCE_TIMEOUT
        return result

    async def start(self) -> Any:
        """Apply the launch, if this start is one, and start; returns when the server answers."""
        try:
            if self._spec:
                await self.apply_launch(self._spec)
            return await self._watched_start()
        except StartFailed as error:
            raise await self._given_up(error.failure) from error.__cause__

    async def progress(self) -> AsyncGenerator[dict[str, Any], None]:
        """The steps of the start; each event has the keys progress, message and phase."""
        async for event in self._steps.follow():
            yield event

    def add_poll_callback(self, callback: Any, *args: Any, **kwargs: Any) -> None:
        """Notice that the server is up: the Hub begins to watch for its end when its start is complete."""
        options = self._launch_of_this_start()
        if options:
            mark = Signer(self.signing_key).mark(options["id"], self.user.name, self.name)
            self._note({**options, "up": mark})  # a Hub that comes back calls this again
            self._steps.prove({"mark": mark, **self._urls()})
            super().add_poll_callback(self._find_out_why)  # type: ignore[misc]  # before the Hub stops what is left
            self.watch_memory(self._tell_of_memory)
        self._steps.end()
        super().add_poll_callback(callback, *args, **kwargs)  # type: ignore[misc]

    async def poll_and_notify(self) -> Any:
        """The exit status if it has ended, None if not; what the Hub calls to stop it, too.

        Of a start that was cancelled before the Hub watched it, the Hub keeps a server that never ran, as ready, for
        ever: its DELETE finds that out, and has nobody to tell. It is cleared away here.
        """
        status = await super().poll_and_notify()  # type: ignore[misc]
        if status is not None and self.ready:
            await self.user.stop(self.name)
        return status

    async def run_post_stop_hook(self) -> Any:
        """Remove what the Hub leaves: it stops only what it finds running."""
        try:
            await self.remove_remains()
        except Exception:
            self.log.exception("Could not remove what is left of %s", self._log_name)
        self._steps.end()  # also of a start that failed, which the Hub always stops
        self._revoke_tokens()
        self._tell_the_end()
        return await maybe_future(super().run_post_stop_hook())  # type: ignore[misc]

    # -- whether

    def _renew(self) -> None:
        """Make sure that this object is as it was configured.

        The Hub makes one per start, but for one case: the retry of a failed start from its own pages.
        """
        if not self._configured:
            self._configured = self.trait_values(config=True)
        elif self._steps.ended:
            self._reset()
            for name, value in self._configured.items():
                if getattr(self, name) is not value:
                    setattr(self, name, value)

    def _take_launch(self) -> None:
        """Verify the launch options, if there are some, and mark them as used."""
        options = self.user_options.get(OPTIONS_KEY)
        if options is not None and not (isinstance(options, dict) and options.get("applied")):
            self._spec = self._verified(options)
            self.user_options = {}  # what came beside them is not signed, and some spawner may obey it
            # in the database it is with what finds the server again: a commit is dear, and until then there is none
            self._note({**options, "applied": True, "taken": self._taken(options["id"])})

    def _taken(self, launch_id: str) -> str:
        """What proves that this very start, and not one before or after, took the launch."""
        text = f"{launch_id} taken by the start of {self.orm_spawner.started}"
        return Signer(self.signing_key).mark(text, self.user.name, self.name)

    def _launch_of_this_start(self) -> dict[str, Any] | None:
        """The launch options, if this start took them, perhaps before the Hub was restarted.

        That the options say so proves nothing: anybody may send them.
        """
        options = self.user_options.get(OPTIONS_KEY)
        if self._spec or (
            self.signing_key
            and isinstance(options, dict)
            and isinstance(options.get("id"), str)
            and options.get("taken") == self._taken(options["id"])
        ):
            return options
        return None

    def _verified(self, options: Any) -> LaunchSpec:
        """The spec of options that the launcher signed for this start."""
        try:
            if not self.signing_key:
                raise BadSignature("This Hub's spawner has no signing key, and so takes no launches.")
            signer = Signer(self.signing_key, self.signature_lifetime)
            spec = signer.verify(self.user.name, self.name, options)
            self._use_once(options["signature"])
        except (BadSignature, InvalidRequest) as error:
            self._store_launch(None)
            self.log.warning("Refused launch options for %s: %s", self._log_name, error)
            raise _error(403, str(error)) from None
        return spec

    def _use_once(self, signature: str) -> None:
        now = time.monotonic()
        for old in [key for key, end in _used.items() if end < now]:
            del _used[old]
        if signature in _used:
            raise BadSignature("These launch options have started a server already. Ask the launcher for a new launch.")
        _used[signature] = now + 2 * self.signature_lifetime

    def _note(self, launch: dict[str, Any] | None) -> None:
        """Have our part of the options as the Hub shows them, or remove it."""
        others = {key: value for key, value in self.user_options.items() if key != OPTIONS_KEY}
        self.user_options = {**others, OPTIONS_KEY: launch} if launch else others

    def _store_launch(self, launch: dict[str, Any] | None) -> None:
        """`_note` it, also in the Hub's database."""
        self._note(launch)
        self.orm_spawner.user_options = self.user_options
        session = object_session(self.orm_spawner)
        if session:
            session.commit()

    # -- what

    async def apply_launch(self, spec: LaunchSpec) -> None:
        """Apply each field of the spec that was asked for.

        Raises:
            StartFailed: naming the field that this spawner can't do, or the volume that does not exist.

        """
        self._spec = spec
        if spec.pull_policy or spec.pull_secrets:
            await maybe_future(self.apply_pull(spec))
        await maybe_future(self.apply_image(spec.image))
        if spec.cpu:
            await maybe_future(self.apply_cpu(spec.cpu))
        if spec.memory:
            await maybe_future(self.apply_memory(spec.memory))
        if spec.gpu:
            await maybe_future(self.apply_gpu(spec.gpu))
        await maybe_future(self.apply_env(self.launch_env()))
        if spec.volumes:  # last: making a volume is the one thing that leaves a trace
            await maybe_future(self.apply_volumes(spec.volumes))
            await self.check_volumes(spec.volumes)

    def launch_env(self) -> dict[str, str]:
        """The variables that a launch sets."""
        if not self._spec:
            return {}
        token_in_url = {"JUPYTERHUB_ALLOW_TOKEN_IN_URL": "1"} if self.allow_token_in_url else {}
        return {**self._spec.env, **token_in_url, **self._packages_env(self._spec)}

    def _packages_env(self, spec: LaunchSpec) -> dict[str, str]:
        """What makes pip install into the volume at the home, and Python look there."""
        pythons = (python for image, python in self.persist_packages.items() if fnmatchcase(spec.image, image))
        python = next(pythons, None)
        folder = self.packages_folder(spec.volumes) if python else None
        if not folder:
            return {}
        if python == "user":
            return {"PIP_USER": "1", "PYTHONUSERBASE": folder}
        return {"PIP_PREFIX": folder, "PYTHONPATH": f"{folder}/lib/python{python}/site-packages"}

    def packages_folder(self, volumes: list[Volume]) -> str | None:
        """Where packages outlive the server; None if nothing does."""
        folder = PurePosixPath(self.home_mount, ".local")
        kept = any(folder.is_relative_to(volume.mount) and not volume.read_only for volume in volumes)
        return str(folder) if kept else None

    def apply_image(self, image: str) -> Any:
        """Start this image."""
        self._need_trait("image", "image")
        self.image = image

    def apply_pull(self, spec: LaunchSpec) -> Any:
        """Pull the image as the policy says."""
        self.refuse("pull_policy and pull_secrets (of the policy)")

    def apply_volumes(self, volumes: list[Volume]) -> Any:
        """Mount these volumes."""
        self.refuse("volumes")

    def apply_cpu(self, cpu: Cpu) -> Any:
        """Guarantee and limit CPU cores."""
        self._set_given("cpu", cpu_guarantee=cpu.request, cpu_limit=cpu.limit)

    def apply_memory(self, memory: Memory) -> Any:
        """Guarantee and limit bytes of memory."""
        self._set_given("memory", mem_guarantee=memory.request, mem_limit=memory.limit)

    def apply_gpu(self, gpu: Gpu) -> Any:
        """Give GPUs, and the shared memory that programs on them expect."""
        self.refuse("gpu")

    def apply_env(self, env: dict[str, str]) -> Any:
        """Set these environment variables."""
        self._need_trait("environment", "env")
        self.environment = {**self.environment, **env}

    def refuse(self, field: str, why: str = "", reason: Reason = "refused_by_hub") -> None:
        """Refuse a field of the spec, by name.

        Raises:
            StartFailed: always.

        """
        message = f"{field}: {why or f'{type(self).__name__} has no support for it'}"
        raise StartFailed(Failure(reason=reason, message=message, refused=True))

    def _need_trait(self, trait: str, field: str) -> None:
        if not self.has_trait(trait):
            self.refuse(field)

    def _set_given(self, field: str, **values: Any) -> None:
        for trait, value in values.items():
            if value is not None:
                self._need_trait(trait, field)
                setattr(self, trait, value)

    # -- what an engine knows

    async def check_volumes(self, volumes: list[Volume]) -> None:
        """Make the volumes that do not exist, where the policy lets us, once it is known that it does for all.

        Raises:
            StartFailed: one does not exist.

        """
        distinct = {volume.name: volume for volume in volumes}.values()
        missing = [volume for volume in distinct if not await self.has_volume(volume)]
        for volume in missing:
            if not volume.create:
                raise self.volume_missing(volume.name)
        for volume in missing:
            self.step(f"Creating the volume {volume.name}", "starting")
            await self.create_volume(volume)

    async def has_volume(self, volume: Volume) -> bool:
        """Whether the engine has this volume."""
        return True

    async def create_volume(self, volume: Volume) -> None:
        """Make this volume as its ``create`` says."""

    async def watch_start(self) -> Failure:
        """Tell the steps of the start; returns when the engine knows that it fails, and never otherwise.

        This one knows nothing but the events of the spawner class.
        """
        async for event in super().progress():  # type: ignore[misc]
            self.step(str(event.get("message", "")), "starting")
        await asyncio.Event().wait()
        raise AssertionError

    async def explain(self, error: Exception) -> Failure | None:
        """What an exception of the spawner's own start means; None if it is not known."""
        return None

    async def why_ended(self) -> Failure | None:
        """Why a server that was up has ended by itself, while what is left of it is there; None if it is not known."""
        return None

    def watch_memory(self, tell: Callable[[], None]) -> None:
        """Have it told whenever a program in the server is ended because it takes too much memory, if that is heard."""

    async def collect_evidence(self) -> Evidence:
        """What can be had of a server that failed, while it is still there."""
        return Evidence()

    async def remove_remains(self) -> None:
        """Remove what is left of a server that is stopped, has ended, or was never complete."""

    def step(self, message: str, phase: Phase | None, done: float = 0) -> None:
        """Tell those who watch the start; ``done`` says how much of the phase, from 0 to 1."""
        self._steps.add(hide(message, self._secrets()), phase, done)

    def volume_missing(self, name: str) -> StartFailed:
        """The error for a volume that does not exist and may not be made."""
        message = f"The volume {name} does not exist. Create it first, or ask for a policy that creates it."
        return StartFailed(Failure(reason="volume_not_found", message=message, refused=True))

    # -- a start, watched

    async def _watched_start(self) -> Any:
        """Start, and give up as soon as the engine knows of a failure."""
        start = asyncio.create_task(self._bring_up())
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.wait([start, watch], return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                return start.result()
            raise StartFailed(watch.result())
        finally:
            for task in (start, watch):
                task.cancel()
            await asyncio.gather(start, watch, return_exceptions=True)

    async def _watch(self) -> Failure:
        """`watch_start`; a start must not fail because it can't be watched."""
        try:
            return await self.watch_start()
        except Exception:
            self.log.exception("Could not watch the start of %s", self._log_name)
            await asyncio.Event().wait()
            raise

    async def _bring_up(self) -> Any:
        """The spawner's own start, and then until the server answers."""
        self.step("Starting the server", "starting")
        try:
            async with asyncio.timeout(self._start_limit) as limit:
                where = await maybe_future(super().start())  # type: ignore[misc]
        except (HTTPError, StartFailed):
            raise
        except Exception as error:
            if limit.expired():
                raise StartFailed(self._too_slow()) from None
            failure = await self.explain(error)
            if failure:
                raise StartFailed(failure) from error
            raise
        if where:
            where = self._as_url(where)
            self._remember(where)
            await self._wait_for_answer(where)
        return where

    def _urls(self) -> dict[str, str | None]:
        """As in the Hub's model of a server (JupyterHub, apihandlers/base.py)."""
        url = url_path_join(self.user.url, url_escape_path(self.name), "/")
        public = self.user.settings.get("public_url")
        full = urlunparse(public._replace(path=url)) if public else None
        return {"url": url, "full_url": url if urlsplit(url).netloc else full}

    def _as_url(self, where: Any) -> str:
        """What older spawners say as an address and a port."""
        if isinstance(where, str):
            return where
        host, port = where
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self.user.settings.get('internal_ssl') else 'http'}://{host}:{int(port)}"

    def _remember(self, url: str) -> None:
        """Keep what finds the server again. The Hub does so when the start is complete, and might die before."""
        session = object_session(self.orm_spawner)
        if session:
            parts = urlsplit(url)
            self.server.proto, self.server.ip = parts.scheme, parts.hostname
            self.server.port = parts.port or (443 if parts.scheme == "https" else 80)
            self.orm_spawner.state = self.get_state()
            if self._spec:
                self.orm_spawner.user_options = self.user_options
            session.commit()

    def _too_slow(self) -> Failure:
        message = f"The server did not start within {self._start_limit:g} seconds (Spawner.start_timeout)."
        return self._suspicion or Failure(reason="timeout", message=message)

    async def _wait_for_answer(self, where: str) -> None:
        """Wait as the Hub does after us, but with somebody watching the container."""
        self.step("Waiting for the server to answer", "waiting")
        url = url_path_join(where, self.server.base_url, "api")
        try:
            # its own time-out counts only between requests, one of which may hang
            async with asyncio.timeout(self.http_timeout):
                await wait_for_http_server(url, timeout=self.http_timeout, ssl_context=self._tls())
        except TimeoutError:
            message = (
                f"The server runs, but did not answer on its port within {self.http_timeout:g} seconds "
                "(Spawner.http_timeout). See that the image starts jupyterhub-singleuser."
            )
            raise StartFailed(Failure(reason="never_ready", message=message)) from None

    async def _given_up(self, failure: Failure) -> HTTPError:
        """The error for the Hub, with everything that is known of the failure, told to the launcher as well."""
        if not failure.refused:
            evidence = await self._in_time(self.collect_evidence())
            failure = failure.with_evidence(evidence or Evidence())
            await self._in_time(self.remove_remains())  # at once: the Hub would first ask it to stop, and wait
        failure = failure.scrubbed(self._secrets())
        self.log.warning("%s did not start (%s): %s", self._log_name, failure.reason, failure.message)
        if self._spec:
            options = self.user_options[OPTIONS_KEY]
            sealed = Signer(self.signing_key).seal({"id": options["id"], "failure": failure.model_dump()}, "failure")
            self._store_launch({**options, "failure": sealed})
        return _error(400 if failure.refused else 500, failure.message, failure.reason, failure.as_html())

    async def _in_time(self, work: Awaitable[Result]) -> Result | None:
        """What comes of it, unless that takes too long or goes wrong: a failure is told all the same."""
        try:
            async with asyncio.timeout(_EVIDENCE_TIMEOUT):
                return await work
        except Exception:
            self.log.exception("Could not look at, or remove, what is left of %s", self._log_name)
            return None

    # -- the end

    async def _find_out_why(self) -> None:
        """The server has ended by itself."""
        failure = await self._in_time(self.why_ended())
        if failure and failure.exit_code != 0:  # 0: its user has shut it down
            evidence = await self._in_time(self.collect_evidence())
            self._fate = failure.with_evidence(evidence or Evidence()).scrubbed(self._secrets())
            self.log.warning("%s has ended (%s): %s", self._log_name, self._fate.reason, self._fate.message)

    def _tell_of_memory(self) -> None:
        options, now = self._launch_of_this_start(), time.monotonic()
        if options and now >= self._memory_told + _MEMORY_INTERVAL:
            self._memory_told = now
            self._tell({"launch": options["id"], "warning": OUT_OF_MEMORY})

    def _revoke_tokens(self) -> None:
        """Revoke what the launcher has minted for this server."""
        note = token_note(self.user.name, self.name)
        session = object_session(self.orm_spawner)
        if session:
            for token in list(self.user.orm_user.api_tokens):
                if (token.note or "").startswith(note):
                    session.delete(token)
            session.commit()

    def _tell_the_end(self) -> None:
        """Leave a note that the launch is over, and tell the launcher, which would otherwise find out later."""
        options = self._launch_of_this_start()
        if not options:
            return  # not of a launch, whatever its options say
        self._store_launch({**options, "ended": True})
        self._tell({"ended": options["id"], "failure": self._fate.model_dump() if self._fate else None})

    def _tell(self, notice: dict[str, Any]) -> None:
        """Tell the launcher something of a server."""
        if self.launcher_url:
            task = asyncio.create_task(self._notify(notice), name=f"tell of {self._log_name}")
            _notices.add(task)
            task.add_done_callback(_notices.discard)

    async def _notify(self, content: dict[str, Any]) -> None:
        url = url_path_join(self.launcher_url, self.user.settings.get("base_url", "/"), self.launcher_path, "ended")
        notice = Signer(self.signing_key).seal(content, "ended")
        tls = self._tls() if url.startswith("https") else None
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_NOTICE_TIMEOUT)) as client,
                client.post(url, headers={"Authorization": f"Sealed {notice}"}, ssl=tls or True) as response,
            ):
                response.raise_for_status()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self.log.info("The launcher at %s could not be told of %s: %s", url, self._log_name, error)

    def _tls(self) -> Any:
        settings = self.user.settings
        return make_ssl_context(
            settings.get("internal_ssl_key"), settings.get("internal_ssl_cert"), cafile=settings.get("internal_ssl_ca")
        )

    def _secrets(self) -> list[str]:
        """What must not be shown; found out once per start, since functions of the administrator's may be asked."""
        if self._hidden is not None:
            return self._hidden
        given = self._spec.env if self._spec else {}
        try:
            env: dict[str, object] = dict(self.get_env())
        except Exception:  # the environment may have functions of the administrator's in it
            env = {"JUPYTERHUB_API_TOKEN": self.api_token}
        self._hidden = secrets_of(env, given)
        return self._hidden


def _error(status: int, message: str, reason: str = "refused", html: str | None = None) -> HTTPError:
    """An error that the Hub shows as it is, on its pages, in its API and in the progress stream."""
    error: HTTPError
    if SpawnException:  # does not count as the Hub's own failure, several of which may make it exit
        error = SpawnException(message, reason=reason, status_code=status, message_html=html or "")
    else:
        error = HTTPError(status, message)
    error.jupyterhub_message = message  # type: ignore[attr-defined]
    if html:
        error.jupyterhub_html_message = html  # type: ignore[attr-defined]
    return error


def __getattr__(name: str) -> Any:
    """The engines' spawner classes are importable from here, too; each only when asked for."""
    from traitlets.utils.importstring import import_item

    from .engines import ENGINES

    for path in ENGINES.values():
        if path.endswith(f".{name}"):
            return import_item(path)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
