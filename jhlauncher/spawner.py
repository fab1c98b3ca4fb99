"""Runs inside the Hub: applies a launch to the spawner, if it comes from the launcher.

`LauncherSpawnerMixin` goes before any spawner class. At a start whose ``user_options`` carry launch options it checks
their signature, applies the spec to the spawner's traits, and lets the spawner start. Every start has a spawner object
of its own in JupyterHub, so that nothing leaks into the next one; containers from the configuration are replaced by
new ones, never changed in place.

Options that were applied are marked ``applied`` in the Hub's database: a later start from the Hub's own page, for
which the Hub reuses the stored options, is then a plain one. They are marked ``up`` once the Hub has seen the server
answer: its own word ``ready`` also holds for a start that was just cancelled. Options that are refused are removed
from the database, so that they refuse one start and not all that follow.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from jupyterhub.utils import maybe_future
from sqlalchemy.orm import object_session
from tornado.web import HTTPError
from traitlets import Bool, Float, Unicode, default
from traitlets.config import Configurable

from . import environment
from .errors import InvalidRequest
from .models import Cpu, Gpu, LaunchSpec, Memory, Volume
from .signing import KEY_ENV, OPTIONS_KEY, BadSignature, Signer

_used: dict[str, float] = {}
"""Signatures that have started a server, with the time after which nobody could use them anyway."""


class LauncherSpawnerMixin(Configurable):
    """Makes a spawner class understand launches.

    What the class has a trait for is applied, and the rest refused by name. A class that knows better overrides
    ``apply_image`` and its siblings; each gets a validated value and may raise `refuse`'s error.
    """

    if TYPE_CHECKING:  # what the spawner class brings
        user: Any
        name: str
        user_options: dict[str, Any]
        environment: dict[str, Any]
        orm_spawner: Any
        mounts: Any
        profile_list: Any
        volumes: Any
        volume_mounts: Any
        extra_resource_guarantees: Any
        extra_resource_limits: Any
        log: logging.Logger
        _log_name: str

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

    @default("signing_key")
    def _default_signing_key(self) -> str:
        return environment.text(KEY_ENV)

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Any:
        """Nothing: launch options are applied after all hooks, so that none can undo them."""
        return lambda spawner, user_options: None

    def run_pre_spawn_hook(self) -> Any:
        """Take the launch options before any hook can fail: they are good for one start, whatever becomes of it."""
        self._take_launch()
        return super().run_pre_spawn_hook()  # type: ignore[misc]

    async def start(self) -> Any:
        """Apply the launch, if this start is one, and start."""
        self._take_launch()
        if self._spec:
            self.apply_launch(self._spec)
        return await maybe_future(super().start())  # type: ignore[misc]

    def add_poll_callback(self, callback: Any, *args: Any, **kwargs: Any) -> None:
        """Notice that the server is up: the Hub begins to watch for its end when its start is complete."""
        if self._spec:  # this start took a launch; that the options say so proves nothing, anybody may send them
            options = self.user_options[OPTIONS_KEY]
            mark = Signer(self.signing_key).mark(options["id"], self.user.name, self.name)
            self._store_options({**self.user_options, OPTIONS_KEY: {**options, "up": mark}})
        super().add_poll_callback(callback, *args, **kwargs)  # type: ignore[misc]

    # -- whether

    _spec: LaunchSpec | None = None
    """Of the launch that this start is."""

    def _take_launch(self) -> None:
        """Verify the launch options, if there are some, and mark them as used."""
        options = self.user_options.get(OPTIONS_KEY)
        if options is not None and not (isinstance(options, dict) and options.get("applied")):
            self._spec = self._verified(options)
            self._store_options({**self.user_options, OPTIONS_KEY: {**options, "applied": True}})

    def _verified(self, options: Any) -> LaunchSpec:
        """The spec of options that the launcher signed for this start."""
        try:
            if not self.signing_key:
                raise BadSignature("This Hub's spawner has no signing key, and so takes no launches.")
            signer = Signer(self.signing_key, self.signature_lifetime)
            spec = signer.verify(self.user.name, self.name, options)
            self._use_once(options["signature"])
        except (BadSignature, InvalidRequest) as error:
            self._store_options({key: value for key, value in self.user_options.items() if key != OPTIONS_KEY})
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

    def _store_options(self, options: dict[str, Any]) -> None:
        self.user_options = options
        self.orm_spawner.user_options = options
        session = object_session(self.orm_spawner)
        if session:
            session.commit()

    # -- what

    def apply_launch(self, spec: LaunchSpec) -> None:
        """Apply each field of the spec that was asked for.

        Raises:
            tornado.web.HTTPError: 400, naming the field that this spawner can't do.

        """
        if self.has_trait("profile_list"):
            self.profile_list = []  # KubeSpawner would apply its default profile over the launch
        self.apply_image(spec.image)
        if spec.volumes:
            self.apply_volumes(spec.volumes)
        if spec.cpu:
            self.apply_cpu(spec.cpu)
        if spec.memory:
            self.apply_memory(spec.memory)
        if spec.gpu:
            self.apply_gpu(spec.gpu)
        self.apply_env({**spec.env, **({"JUPYTERHUB_ALLOW_TOKEN_IN_URL": "1"} if self.allow_token_in_url else {})})

    def apply_image(self, image: str) -> None:
        """Start this image."""
        self._need_trait("image", "image")
        self.image = image

    def apply_volumes(self, volumes: list[Volume]) -> None:
        """Mount these volumes: as claims where the class has pods, as Docker's named volumes where it has mounts."""
        if self.has_trait("volume_mounts"):
            for index, volume in enumerate(volumes):
                self._add_pod_volume(
                    f"launch-{index}",
                    {"persistentVolumeClaim": {"claimName": volume.name, "readOnly": volume.read_only}},
                    {"mountPath": volume.mount, "subPath": volume.subpath, "readOnly": volume.read_only},
                )
        elif self.has_trait("mounts"):
            if any(volume.subpath for volume in volumes):
                self.refuse("volumes", f"{type(self).__name__} has no support for a subpath")
            self.mounts = [*self.mounts, *(_docker_mount(volume) for volume in volumes)]
        else:
            self.refuse("volumes")

    def _add_pod_volume(self, name: str, volume: dict[str, Any], mount: dict[str, Any]) -> None:
        """A volume and its mount, with braces as KubeSpawner takes them; either collection may be a list or a dict."""
        self.volumes = _with_entry(self.volumes, {"name": name, **volume})
        escaped = {key: _escaped(value) if isinstance(value, str) else value for key, value in mount.items()}
        self.volume_mounts = _with_entry(self.volume_mounts, {"name": name, **escaped})

    def apply_cpu(self, cpu: Cpu) -> None:
        """Guarantee and limit CPU cores."""
        self._set_given("cpu", cpu_guarantee=cpu.request, cpu_limit=cpu.limit)

    def apply_memory(self, memory: Memory) -> None:
        """Guarantee and limit bytes of memory."""
        self._set_given("memory", mem_guarantee=memory.request, mem_limit=memory.limit)

    def apply_gpu(self, gpu: Gpu) -> None:
        """Give GPUs, and the shared memory that programs on them expect."""
        self._need_trait("extra_resource_limits", "gpu")
        amount = {"nvidia.com/gpu": str(gpu.count)}
        self.extra_resource_guarantees = {**self.extra_resource_guarantees, **amount}
        self.extra_resource_limits = {**self.extra_resource_limits, **amount}
        self._add_pod_volume("launch-shm", {"emptyDir": {"medium": "Memory"}}, {"mountPath": "/dev/shm"})  # noqa: S108

    def apply_env(self, env: dict[str, str]) -> None:
        """Set these environment variables."""
        self._need_trait("environment", "env")
        if self.has_trait("volume_mounts"):  # KubeSpawner formats the values
            env = {name: _escaped(value) for name, value in env.items()}
        self.environment = {**self.environment, **env}

    def refuse(self, field: str, why: str = "") -> None:
        """Refuse a field of the spec, by name.

        Raises:
            tornado.web.HTTPError: 400, always.

        """
        raise _error(400, f"{field}: {why or f'{type(self).__name__} has no support for it'}")

    def _need_trait(self, trait: str, field: str) -> None:
        if not self.has_trait(trait):
            self.refuse(field)

    def _set_given(self, field: str, **values: Any) -> None:
        for trait, value in values.items():
            if value is not None:
                self._need_trait(trait, field)
                setattr(self, trait, value)


def _escaped(text: str) -> str:
    """The text as it comes out of `str.format` unchanged."""
    return text.replace("{", "{{").replace("}", "}}")


def _with_entry(entries: Any, entry: dict[str, Any]) -> Any:
    return {**entries, entry["name"]: entry} if isinstance(entries, dict) else [*entries, entry]


def _docker_mount(volume: Volume) -> dict[str, Any]:
    target = _escaped(volume.mount)
    return {"type": "volume", "source": volume.name, "target": target, "read_only": volume.read_only}


def _error(status: int, message: str) -> HTTPError:
    """An error that the Hub shows as it is, on its pages, in its API and in the progress stream."""
    error = HTTPError(status, message.replace("%", "%%"))
    error.jupyterhub_message = message  # type: ignore[attr-defined]
    return error
