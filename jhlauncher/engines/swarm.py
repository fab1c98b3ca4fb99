"""The ``swarm`` engine: a server is a service with one task, on any node of a Docker Swarm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from docker.errors import APIError, NotFound
from docker.types import Mount
from dockerspawner import SwarmSpawner
from traitlets import Float, Unicode

from ..failures import MAX_LINES, Evidence, Failure, ended, pull_failure
from ..models import LaunchSpec, Phase, Volume
from .docker import DockerLaunch, docker_mount
from .fresh_volumes import give_fresh_volumes

_PHASES: dict[str, tuple[str, Phase]] = {
    "new": ("Looking for a node", "scheduling"),
    "pending": ("Looking for a node", "scheduling"),
    "assigned": ("A node was found", "scheduling"),
    "accepted": ("A node was found", "scheduling"),
    "preparing": ("The node fetches the image and makes the container", "pulling"),
    "ready": ("Starting the container", "creating"),
    "starting": ("Starting the container", "creating"),
}
"""What people see of a task's states (https://docs.docker.com/engine/swarm/how-swarm-mode-works/swarm-task-states/)."""


class SwarmLaunch(DockerLaunch):
    """What a launch means for SwarmSpawner.

    Swarm tells nobody what becomes of a task, so a start asks for it, every 0.3 seconds until it runs.
    """

    if TYPE_CHECKING:
        extra_endpoint_spec: dict[str, Any]
        extra_task_spec: dict[str, Any]
        service_name: str
        network_name: str
        internal_ssl: bool

    scheduling_timeout = Float(
        30, min=0, help="Seconds that a server may wait for a node with room for it, before the start is given up."
    ).tag(config=True)
    gpu_resource = Unicode(
        "NVIDIA-GPU", help="The generic resource that GPUs are, as the nodes' node-generic-resources name it."
    ).tag(config=True)

    def _reset(self) -> None:
        super()._reset()
        self._own_service = self._disk_node = ""

    async def check_volumes(self, volumes: list[Volume]) -> None:
        """Disks are on the node whose Docker Engine we talk to."""
        await super().check_volumes(volumes)
        if self._has_disks:
            self._disk_node = (await self.docker("info"))["Swarm"]["NodeID"]

    def apply_pull(self, spec: LaunchSpec) -> None:
        """The nodes pull, with the credentials that the Hub's Docker client has."""
        if spec.pull_secrets:
            self.refuse("pull_secrets", "a swarm's nodes pull with the credentials of the Hub's Docker client only")
        super().apply_pull(spec)

    async def _capacity(self, field: str) -> float:
        """What the largest node has."""
        nodes = [node["Description"]["Resources"] for node in await self.docker("nodes")]
        return max(float(node["NanoCPUs"] / 1e9 if field == "cpu" else node["MemoryBytes"]) for node in nodes)

    def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A call to Docker in DockerSpawner's thread."""
        if method == "create_service":
            self._shape_endpoint(kwargs["endpoint_spec"])
            if self._spec:
                self._shape_task(kwargs["task_template"], self._spec)
        return super().docker(method, *args, **kwargs)

    def _shape_endpoint(self, endpoint: dict[str, Any]) -> None:
        """A single task needs no load balancer: Swarm's drops connections that are idle for 15 minutes."""
        if not endpoint.get("Ports") and "mode" not in self.extra_endpoint_spec:
            endpoint["Mode"] = "dnsrr"

    def _shape_task(self, task: dict[str, Any], spec: LaunchSpec) -> None:
        """The last word on the service that is about to be made."""
        container = task["ContainerSpec"]
        container["Image"] = spec.image
        env = self.launch_env()
        others = [item for item in container.get("Env") or [] if item.partition("=")[0] not in env]
        container["Env"] = others + [f"{name}={_escaped(value)}" for name, value in env.items()]
        targets = {volume.mount for volume in spec.volumes}
        mounts = [mount for mount in container.get("Mounts") or [] if mount["Target"].rstrip("/") not in targets]
        container["Mounts"] = mounts + [_swarm_mount(volume) for volume in spec.volumes]
        if self._disk_node:
            placement = task["Placement"] = dict(task.get("Placement") or {})
            placement["Constraints"] = [*(placement.get("Constraints") or []), f"node.id=={self._disk_node}"]
        resources = task.setdefault("Resources", {})
        limits, reservations = resources.setdefault("Limits", {}), resources.setdefault("Reservations", {})
        if spec.cpu:
            _set_both(limits, reservations, "NanoCPUs", _nano(spec.cpu.limit), _nano(spec.cpu.request))
        if spec.memory:
            _set_both(limits, reservations, "MemoryBytes", spec.memory.limit, spec.memory.request)
        if spec.gpu and spec.gpu.count:
            gpus = {"DiscreteResourceSpec": {"Kind": self.gpu_resource, "Value": spec.gpu.count}}
            reservations["GenericResources"] = [gpus]
        if "restart_policy" not in self.extra_task_spec:
            task["RestartPolicy"] = {"Condition": "none"}  # a server that ends has ended; the Hub notices

    # -- a start

    async def pull_image(self, image: str) -> None:
        """Pull where this can be seen: in a swarm of one node, whose Docker Engine is the one we talk to."""
        if self.pull_policy.lower() == "skip" and len(await self.docker("nodes")) == 1:
            self.pull_policy = "ifnotpresent"
        await super().pull_image(image)

    async def create_object(self) -> Any:
        """Make the service, and its volumes before it."""
        if self._spec and self._spec.volumes:
            await self._slow(self._prepare_volumes, self._spec.volumes)
        service = await super().create_object()
        self._own_service = service["ID"]
        return service

    def _prepare_volumes(self, volumes: list[Volume]) -> None:
        """Give fresh volumes to the image's user, with a container that is never started. Blocks.

        Where volumes are the nodes' own, this reaches those of the manager; so does the Hub when it makes them.
        """
        with suppress(NotFound):  # the image is on other nodes only
            host = self.client.create_host_config(mounts=[docker_mount(volume) for volume in volumes])
            container = self.client.create_container(self.image, ["true"], host_config=host)["Id"]
            try:
                give_fresh_volumes(self.client, container, volumes)
            finally:
                self.client.remove_container(container, v=True, force=True)

    async def start_object(self) -> None:
        """Wait until the task runs."""
        await self._started.wait()

    async def watch_start(self) -> Failure:
        """Ask for the task, again and again."""
        loop = asyncio.get_running_loop()
        waiting_since = None
        while True:
            status = await self._task_status() if self._own_service else {"State": "none"}
            state = status["State"]
            if state == "running":
                self._started.set()
            elif state in _PHASES:
                self.step(*_PHASES[state])
            elif state != "none":
                return await self._task_ended(status)
            if state in ("new", "pending") and status.get("Err"):
                waiting_since = waiting_since or loop.time()
                self._suspicion = _unschedulable(status["Err"])
                self.step(f"Looking for a node: {status['Err']}", "scheduling")
                if loop.time() - waiting_since >= self.scheduling_timeout:
                    return self._suspicion
            else:
                waiting_since = self._suspicion = None
            await asyncio.sleep(1 if self._started.is_set() else 0.3)

    async def why_ended(self) -> Failure | None:
        """As the service's latest task says."""
        status = await self._task_status() if self._own_service else {"State": "running"}
        return await self._task_ended(status) if status["State"] not in ("running", *_PHASES) else None

    def watch_memory(self, tell: Callable[[], None]) -> None:
        """Only the node's own engine would hear of it."""

    async def _tasks(self) -> list[dict[str, Any]]:
        """Those of our service, the latest at the end."""
        try:
            tasks = await self.docker("tasks", filters={"service": self._own_service})
        except NotFound:
            return []
        return sorted(tasks, key=lambda task: str(task["CreatedAt"]))

    async def _task_status(self) -> dict[str, Any]:
        """The latest task's, or that the service is gone."""
        tasks = await self._tasks()
        status: dict[str, Any] = tasks[-1]["Status"] if tasks else {"State": "removed"}
        return status

    async def get_ip_and_port(self) -> tuple[str, int]:
        """The task's own address: nobody has an old one of the service's name in a cache, as after a restart."""
        where: tuple[str, int] = await super().get_ip_and_port()
        if not self._spec or self.internal_ssl or where[0] != self.service_name:
            return where
        for attachment in (await self._tasks())[-1].get("NetworksAttachments") or []:
            network = attachment["Network"]
            if self.network_name in (network["ID"], network["Spec"]["Name"]) and attachment.get("Addresses"):
                return attachment["Addresses"][0].partition("/")[0], where[1]
        return where

    async def _task_ended(self, status: dict[str, Any]) -> Failure:
        """What a task's last state means."""
        error = status.get("Err") or status.get("Message") or status["State"]
        if status["State"] == "removed":
            return Failure(reason="start_failed", message="Somebody removed the service.")
        if status["State"] == "rejected":
            return await self._rejected(error)
        container = status.get("ContainerStatus") or {}
        exit_code = container.get("ExitCode")
        return ended(exit_code, out_of_memory=await self._was_killed(container), memory_limit=self.mem_limit)

    async def _rejected(self, error: str) -> Failure:
        if "no such image" in error.lower() or "pull" in error.lower():
            return pull_failure(self.image, error)
        return await self.explain(APIError("rejected", explanation=error)) or _unschedulable(error)

    async def _was_killed(self, container: dict[str, Any]) -> bool:
        """Whether it ran out of memory; only the node's own engine knows, elsewhere 137 (SIGKILL) must do."""
        try:
            state = (await self.docker("inspect_container", container.get("ContainerID", "")))["State"]
        except (APIError, ValueError):
            return bool(self.mem_limit) and container.get("ExitCode") == 137
        return bool(state["OOMKilled"])

    async def collect_evidence(self) -> Evidence:
        """The service's log, and what has become of its tasks."""
        if not self._own_service:
            return Evidence()
        tasks = await self._tasks()
        log = b""
        with suppress(APIError, OSError):  # not every log driver can be read
            log = await self._slow(
                self.client.service_logs, self._own_service, stdout=True, stderr=True, tail=MAX_LINES
            )
        events = [": ".join(filter(None, (t["Status"]["State"], t["Status"].get("Err")))) for t in tasks]
        exit_code = (tasks[-1]["Status"].get("ContainerStatus") or {}).get("ExitCode") if tasks else None
        text = log if isinstance(log, bytes) else b"".join(log)
        return Evidence(exit_code=exit_code, log=text.decode(errors="replace").splitlines(), events=events)

    async def explain(self, error: Exception) -> Failure | None:
        """What Docker's refusal means."""
        return await super().explain(error) if isinstance(error, APIError | OSError) else None

    async def remove_object(self) -> None:
        """Remove the service, and wait until its tasks' containers are gone."""
        service = self.object_id
        with suppress(NotFound):
            await super().remove_object()  # type: ignore[misc]
        with suppress(TimeoutError):  # Swarm goes on by itself
            async with asyncio.timeout(30):
                while await self._containers(service):  # noqa: ASYNC110  (nothing tells)
                    await asyncio.sleep(0.2)

    async def _containers(self, service: str) -> list[Any]:
        """Those of a service that are still on this node."""
        label = f"com.docker.swarm.service.id={service}"
        containers: list[Any] = await self.docker("containers", all=True, filters={"label": label})
        return containers

    async def remove_remains(self) -> None:
        """The service; Swarm removes its containers and their anonymous volumes."""
        if await self.get_object():
            await self.remove_object()


class LauncherSwarmSpawner(SwarmLaunch, SwarmSpawner):  # type: ignore[misc]
    """The ``swarm`` engine: servers as services of a Docker Swarm (see `SwarmSpawner`)."""


def _escaped(value: str) -> str:
    """The value as it comes out of Swarm's expansion of templates (of Go) unchanged."""
    return value.replace("{{", '{{"{{"}}')


def _swarm_mount(volume: Volume) -> Mount:
    """Also says how the volume is made, for nodes that do not have it yet."""
    mount = docker_mount(volume)
    mount["Target"] = _escaped(mount["Target"])
    new = volume.create
    if new and (new.driver != "local" or new.driver_options):
        driver = {"Name": new.driver, "Options": new.driver_options}
        mount["VolumeOptions"] = {**mount.get("VolumeOptions", {}), "DriverConfig": driver}
    return mount


def _nano(cores: float | None) -> int | None:
    return int(cores * 1e9) if cores else None


def _set_both(limits: dict[str, Any], reservations: dict[str, Any], key: str, limit: Any, request: Any) -> None:
    """The launch's, and nothing of the configuration's: half of each would be nobody's wish."""
    for values, value in ((limits, limit), (reservations, request)):
        values.pop(key, None)
        if value:
            values[key] = value


def _unschedulable(why: str) -> Failure:
    return Failure(reason="unschedulable", message=f"No node of the swarm can run the server: {why}. Ask for less.")
