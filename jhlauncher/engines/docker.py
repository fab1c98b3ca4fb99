"""The ``docker`` engine: a server is a container on one host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from docker.errors import APIError, DockerException, NotFound
from docker.types import Mount
from docker.utils import version_lt
from dockerspawner import DockerSpawner
from traitlets import Dict, Enum, TraitError, Unicode, validate

from ..failures import MAX_LINES, Evidence, Failure, StartFailed, ended, pull_failure
from ..models import Cpu, Gpu, LaunchSpec, Memory, Volume
from ..spawner import LauncherSpawnerMixin
from .disks import KIND_LABEL, DiskError, Disks, Kind
from .docker_events import ContainerEvents
from .fresh_volumes import give_fresh_volumes
from .pulling import PullFailed, pull

SUBPATH_API = "1.45"
"""The first version of Docker's API that can mount a part of a volume (Docker Engine 26)."""

_threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="docker-slow")
"""For calls that may take minutes."""


class DockerLaunch(LauncherSpawnerMixin):
    """What a launch means for DockerSpawner and its descendants.

    What was launched is written into the very request that makes the container, so that neither templates nor the
    administrator's ``extra_host_config`` and ``extra_create_kwargs`` can change it.
    """

    if TYPE_CHECKING:
        client: Any
        image: str
        remove: bool
        object_id: str
        object_name: str
        pull_policy: str
        mem_limit: int
        cpu_limit: float
        cmd: list[str]

        async def get_object(self) -> Any: ...

    pull_secrets = Dict(
        help="""Credentials that the policy's pull_secrets name: {name: {"username": ..., "password": ...}}.

        Images that need none of these are pulled as the Docker client of the Hub is configured.
        """
    ).tag(config=True)

    disks = Enum(
        ["", "loopback", "lvm"],
        "",
        help="""Give each volume that a launch makes a file system of its own, of the size that the policy says.

        "loopback": in an image file, all of which is allocated at once. "lvm": on a logical volume. Default, "": a
        volume is a folder of Docker's, without a limit, as Docker makes them. What is done on the host is done by a
        container of `disks_image`, which may mount and use its block devices.
        """,
    ).tag(config=True)
    disks_image = Unicode(
        "jhlauncher-disks", help="The image that makes disks, target disks of etc/docker/Dockerfile; never pulled."
    ).tag(config=True)
    disks_dir = Unicode(
        "/var/lib/jhlauncher/disks", help="Folder on the Docker host for the image files of disks = loopback."
    ).tag(config=True)
    disks_volume_group = Unicode(help="LVM's volume group on the Docker host for disks = lvm.").tag(config=True)

    _executor = ThreadPoolExecutor(max_workers=8, thread_name_prefix="docker")
    """For all other calls. DockerSpawner's own is one thread, in which those who stop, at some seconds each, keep
    everybody waiting who starts."""
    _events: ContainerEvents | None = None

    @validate("disks_dir")
    def _valid_disks_dir(self, proposal: Any) -> str:
        if not proposal.value.startswith("/") or ":" in proposal.value:
            raise TraitError(f"disks_dir must be an absolute path without a colon, and not {proposal.value!r}")
        return str(proposal.value)

    def _reset(self) -> None:
        super()._reset()
        self._started = asyncio.Event()
        self._credentials: dict[str, str] | None = None
        self._launched = self._has_disks = False

    def _renew(self) -> None:
        again = bool(self._configured)
        super()._renew()
        if again:
            self.object_name = self._object_name_default()  # type: ignore[attr-defined]

    # -- what

    async def apply_launch(self, spec: LaunchSpec) -> None:
        """Apply the spec to a container of its own, which is removed with the server.

        An administrator who keeps users' containers (``remove = False``) keeps those of plain starts: a launch has
        its own beside them, named as no user's can be.
        """
        await super().apply_launch(spec)
        if not self.remove:
            self.object_name = f"{self.object_name}.launch"
        self._keep_launched()

    def _keep_launched(self) -> None:
        self._launched = True
        self.remove = True

    def get_state(self) -> dict[str, Any]:
        """Remember that the container is a launch's, over a restart of the Hub, but no longer than it lives."""
        launched = {"launched": True} if self._launched and self.object_id else {}
        return {**super().get_state(), **launched}

    def load_state(self, state: dict[str, Any]) -> None:
        """A launch's container is removed with the server."""
        super().load_state(state)  # type: ignore[misc]
        if state.get("launched"):
            self._keep_launched()

    def apply_pull(self, spec: LaunchSpec) -> None:
        """Pull as the policy says."""
        if spec.pull_policy:
            self.pull_policy = spec.pull_policy.lower()
        if spec.pull_secrets:
            known = [self.pull_secrets[name] for name in spec.pull_secrets if name in self.pull_secrets]
            if not known:
                names = ", ".join(spec.pull_secrets)
                self.refuse("pull_secrets", f"{type(self).__name__}.pull_secrets has no {names} that the policy names")
            self._credentials = known[0]

    async def apply_cpu(self, cpu: Cpu) -> None:
        """The limit is a quota; a request, as Kubernetes has it, a weight when CPUs are short."""
        self._set_given("cpu", cpu_limit=cpu.limit)
        await self._check_capacity("cpu", max(cpu.request or 0, cpu.limit or 0))

    async def apply_memory(self, memory: Memory) -> None:
        """The limit is hard; a request is what the container is pressed down to when memory is short."""
        self._set_given("memory", mem_limit=memory.limit)
        await self._check_capacity("memory", max(memory.request or 0, memory.limit or 0))

    async def _check_capacity(self, field: str, asked: float) -> None:
        """Docker itself would start it, and let it believe that it has what nobody has."""
        capacity = await self._capacity(field)
        if asked > capacity:
            has = f"{capacity:g} CPUs" if field == "cpu" else f"{capacity / 1024**3:.1f}G"
            message = f"{field}: no machine here has as much as was asked for; the largest has {has}. Ask for less."
            raise StartFailed(Failure(reason="unschedulable", message=message))

    async def _capacity(self, field: str) -> float:
        """What the host has."""
        info = await self.docker("info")
        return float(info["NCPU"] if field == "cpu" else info["MemTotal"])

    def apply_gpu(self, gpu: Gpu) -> None:
        """Has no trait; `_shape` asks Docker for the devices."""

    async def apply_volumes(self, volumes: list[Volume]) -> None:
        """Has no trait; `_shape` mounts them."""
        if any(volume.subpath for volume in volumes):
            version = (await self.docker("version"))["ApiVersion"]
            if version_lt(version, SUBPATH_API):
                self.refuse("volumes", "this Docker Engine can't mount a subpath; version 26 and later can")

    async def has_volume(self, volume: Volume) -> bool:
        """Docker would make a missing volume without a word."""
        try:
            await self.docker("inspect_volume", volume.name)
        except NotFound:
            return False
        return True

    async def create_volume(self, volume: Volume) -> None:
        """Make a named volume; a disk, if the policy says nothing else of its driver."""
        new = volume.create
        assert new  # noqa: S101  (for mypy)
        options = new.driver_options
        labels = {"app.kubernetes.io/managed-by": "jhlauncher", "hub.jupyter.org/username": self.user.name}
        if self.disks and (new.driver, options) == ("local", {}):
            disks = self.disks_of(cast("Kind", self.disks))
            await self._disk_work(disks.create, volume.name, new.size)
            options, labels = disks.options(volume.name), {**labels, KIND_LABEL: self.disks}
        try:
            await self.docker("create_volume", volume.name, new.driver, options, labels)
        except APIError as error:
            message = f"The volume {volume.name} could not be made: {error.explanation}"
            raise StartFailed(Failure(reason="volume_failed", message=message)) from error

    async def check_volumes(self, volumes: list[Volume]) -> None:
        """Also have the devices of disks there, which a reboot has taken away."""
        await super().check_volumes(volumes)
        disks: dict[Kind, list[str]] = {}
        for name in dict.fromkeys(volume.name for volume in volumes):
            labels = (await self.docker("inspect_volume", name))["Labels"] or {}
            if KIND_LABEL in labels:
                disks.setdefault(labels[KIND_LABEL], []).append(name)
        for kind, names in disks.items():
            await self._disk_work(self.disks_of(kind).attach, names)
        self._has_disks = bool(disks)

    def disks_of(self, kind: Kind) -> Disks:
        """The disks of one kind, on the host that this spawner's Docker client reaches."""
        return Disks(self.client, kind, self.disks_image, self.disks_dir, self.disks_volume_group)

    async def _disk_work(self, work: Any, *args: Any) -> None:
        try:
            await self._slow(work, *args)
        except DiskError as error:
            raise StartFailed(Failure(reason="volume_failed", message=f"{error}.")) from error

    def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A call to Docker in DockerSpawner's thread."""
        if method == "create_container":
            self._shape(kwargs)
        return super().docker(method, *args, **kwargs)  # type: ignore[misc]

    def _shape(self, kwargs: dict[str, Any]) -> None:
        """The last word on the container that is about to be made."""
        host = kwargs["host_config"]
        if self.remove:
            host["AutoRemove"] = False  # its log and exit code are wanted first; `remove_remains` removes it
        spec = self._spec
        if not spec:
            return
        kwargs["image"] = spec.image
        kwargs["environment"] = _with_env(kwargs.get("environment") or {}, self.launch_env())
        # what a launch gives is its own as a whole: half of it and half of the configuration would be nobody's wish
        if spec.cpu:
            for key in ("NanoCpus", "CpuShares", "CpuPeriod", "CpuQuota"):
                host.pop(key, None)
            if spec.cpu.limit:
                host.update(CpuPeriod=100_000, CpuQuota=int(spec.cpu.limit * 100_000))
            if spec.cpu.request:
                host["CpuShares"] = max(2, int(spec.cpu.request * 1024))
        if spec.memory:
            for key in ("Memory", "MemorySwap", "MemoryReservation"):
                host.pop(key, None)
            host.update(_memory(spec.memory))
        if spec.gpu and spec.gpu.count:
            host["DeviceRequests"] = [{"Driver": "", "Count": spec.gpu.count, "Capabilities": [["gpu"]]}]
        if spec.volumes:
            self._shape_mounts(kwargs, host, spec.volumes)

    def _shape_mounts(self, kwargs: dict[str, Any], host: dict[str, Any], volumes: list[Volume]) -> None:
        """Mount the launch's volumes; what else would be mounted at the same place gives way."""
        targets = {volume.mount for volume in volumes}
        host["Mounts"] = [mount for mount in host.get("Mounts") or [] if mount["Target"].rstrip("/") not in targets]
        host["Mounts"] += [docker_mount(volume) for volume in volumes]
        host["Binds"] = [bind for bind in host.get("Binds") or [] if _target(bind) not in targets]
        kwargs["volumes"] = [path for path in kwargs.get("volumes") or [] if path.rstrip("/") not in targets]

    # -- a start

    async def pull_image(self, image: str) -> None:
        """Pull the image as `pull_policy` says, telling how far it is."""
        policy = self.pull_policy.lower()
        if policy == "skip":
            return
        try:
            await self.docker("inspect_image", image)
        except NotFound:
            if policy == "never":
                message = f"The image {image} is not on this host, and the pull policy is to pull none."
                raise StartFailed(Failure(reason="image_not_found", message=message)) from None
        else:
            if policy != "always":
                return

        def report(done: float) -> None:
            self.step(f"Pulling the image {image}: {done:.0%}", "pulling", done)

        try:
            await pull(self.client, image, self._credentials, report)
        except PullFailed as error:
            raise StartFailed(pull_failure(image, str(error))) from error

    async def get_command(self) -> list[str]:
        """What to run: the configuration's command, or else the image's."""
        if not self.cmd and not (await self.docker("inspect_image", self.image))["Config"].get("Cmd"):
            message = f"The image {self.image} has no command of its own; use another, or set Spawner.cmd."
            raise StartFailed(Failure(reason="start_failed", message=message))
        command: list[str] = await super().get_command()  # type: ignore[misc]
        return command

    async def create_object(self) -> Any:
        """Make the container."""
        self.step("Creating the container", "creating")
        return await super().create_object()  # type: ignore[misc]

    async def start_object(self) -> None:
        """Start the container."""
        if self._spec:
            await self._slow(give_fresh_volumes, self.client, self.object_id, self._spec.volumes)
        self.step("Starting the container", "creating", 0.5)
        await super().start_object()  # type: ignore[misc]
        self._started.set()

    async def get_ip_and_port(self) -> tuple[str, int]:
        """Where the server will answer.

        Raises:
            RuntimeError: the container has no address, as it has ended already.

        """
        where: tuple[str, int] = await super().get_ip_and_port()  # type: ignore[misc]
        if not where[0]:
            raise RuntimeError(f"the container {self.object_name} has no address")
        return where

    async def watch_start(self) -> Failure:
        """Docker tells when the container ends."""
        await self._started.wait()
        with self._all_events().bell(self.object_name) as bell:
            while True:
                rung = bell.listen()
                failure = await self._end()
                if failure:
                    return failure
                with suppress(TimeoutError):  # a stream may be dead without anybody's notice
                    async with asyncio.timeout(30):
                        await rung.wait()

    async def why_ended(self) -> Failure | None:
        """As Docker has seen the container's end."""
        return await self._fate_of_container()

    def watch_memory(self, tell: Callable[[], None]) -> None:
        """Docker tells when the kernel has ended one of the container's processes for its memory."""
        self._all_events().on_out_of_memory(self.object_name, tell)

    def _all_events(self) -> ContainerEvents:
        """The engine's events, for all of the Hub's servers."""
        cls = type(self)
        if cls._events is None:
            cls._events = ContainerEvents(self.client, self.log)
        return cls._events

    async def _end(self) -> Failure | None:
        """How the container that was started has ended; None if it runs, or was not started."""
        return await self._fate_of_container() if self._started.is_set() else None

    async def _fate_of_container(self) -> Failure | None:
        try:
            state = (await self.docker("inspect_container", self.object_id))["State"]
        except NotFound:
            return Failure(reason="start_failed", message="Somebody removed the container.")
        if state["Running"]:
            return None
        return ended(state["ExitCode"], out_of_memory=state["OOMKilled"], memory_limit=self.mem_limit)

    async def explain(self, error: Exception) -> Failure | None:
        """What Docker's refusal means; or what became of the container, which explains most other errors."""
        if isinstance(error, APIError):
            return _explain(self.image, str(error.explanation or error))
        if isinstance(error, DockerException | OSError):
            return Failure(reason="start_failed", message=f"The Docker Engine does not answer: {error}")
        return await self._end()

    async def collect_evidence(self) -> Evidence:
        """The container's log and state."""
        try:
            state = (await self.docker("inspect_container", self.object_id or self.object_name))["State"]
        except NotFound:
            return Evidence()
        log = b""
        with suppress(APIError, OSError):  # not every log driver can be read
            log = await self._slow(self.client.logs, self.object_id, tail=MAX_LINES)
        events = [f"Container {state['Status']}"]
        if state["Error"]:
            events.append(state["Error"])
        exit_code = None if state["Running"] or state["Status"] == "created" else state["ExitCode"]
        return Evidence(exit_code=exit_code, log=log.decode(errors="replace").splitlines(), events=events)

    async def remove_remains(self) -> None:
        """The container, unless the administrator keeps containers, and its anonymous volumes."""
        if self._events:
            self._events.forget(self.object_name)
        if self.remove and await self.get_object():
            with suppress(NotFound):
                await self.docker("remove_container", self.object_id, v=True, force=True)

    async def _slow(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """A call that may take long, in a thread that blocks nobody."""
        return await asyncio.get_running_loop().run_in_executor(_threads, lambda: function(*args, **kwargs))


class LauncherDockerSpawner(DockerLaunch, DockerSpawner):  # type: ignore[misc]
    """The ``docker`` engine: servers as containers on one Docker host (see `DockerSpawner`)."""


def docker_mount(volume: Volume) -> Mount:
    """A named volume, as Docker's API has it."""
    options = {"subpath": volume.subpath} if volume.subpath else {}
    return Mount(volume.mount, volume.name, type="volume", read_only=volume.read_only, **options)


def _memory(memory: Memory) -> dict[str, int]:
    """Bytes, in the words of Docker's API. Swap would be memory beyond the limit."""
    limit = {"Memory": memory.limit, "MemorySwap": memory.limit} if memory.limit else {}
    return {**limit, **({"MemoryReservation": memory.request} if memory.request else {})}


def _with_env(environment: Any, env: dict[str, str]) -> Any:
    """An environment with these variables; docker-py takes a dict or a list."""
    if isinstance(environment, dict):
        return {**environment, **env}
    others = [item for item in environment if item.partition("=")[0] not in env]
    return others + [f"{name}={value}" for name, value in env.items()]


def _target(bind: str) -> str:
    """Where ``source:target[:mode]`` is mounted."""
    return bind.split(":")[1].rstrip("/")


def _explain(image: str, text: str) -> Failure:
    """What the engine's refusal of a container means."""
    lower = text.lower()
    if "no such image" in lower:
        return pull_failure(image, text)
    if "minimum memory limit" in lower:
        return Failure(reason="refused_by_hub", message=f"memory: {text}", refused=True)
    if "device driver" in lower or "no suitable node" in lower:
        return Failure(reason="unschedulable", message=f"No machine here has what was asked for: {text}")
    if "memory limit too low" in lower or "oom-killed" in lower:
        return ended(None, out_of_memory=True)
    if "volume" in lower or "mount" in lower:
        return Failure(reason="volume_failed", message=f"A volume could not be mounted: {text}")
    return Failure(reason="start_failed", message=f"The Docker Engine did not start the container: {text}")
