"""Docker and Docker Swarm, as an operator looks at them: can they be used, and which servers are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from docker.errors import APIError, DockerException, NotFound

from ..engines.disks import KIND_LABEL, Disk, DiskError, Disks
from .findings import Finding, good, problem, warning
from .found import EngineUnavailable, Found, Kept, Refused, belongs, variables

_MADE = "app.kubernetes.io/managed-by"
_SOCKET = "Start Docker, and let the Hub's user use its socket; in a container, mount it and add the socket's group."


class DockerEngine:
    """The ``docker`` engine.

    Args:
        spawner: one that is configured as the Hub's are; of nobody's server.

    """

    forgetting_removes_volumes = False

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner

    async def check(self) -> AsyncIterator[Finding]:
        """Whether the Docker Engine answers, and has the network."""
        try:
            info = await self._call("info")
        except EngineUnavailable as error:
            yield problem("engine", f"The Docker Engine can't be used: {error}", _SOCKET)
            return
        yield good("engine", f"Docker Engine {info['ServerVersion']} answers.")
        async for finding in self._check_more(info):
            yield finding

    async def _check_more(self, info: Any) -> AsyncIterator[Finding]:
        network = self._spawner.network_name
        if network and network not in ("bridge", "host", "none"):
            yield await self._check_network(network, f"docker network create {network}")
        if self._kind():
            yield await self._check_disks_image(self._spawner.disks_image)
        if not self._spawner.remove:
            yield warning(
                "engine",
                "DockerSpawner.remove is off: a plain start takes an old container up again, with its old image.",
                "c.DockerSpawner.remove = True, unless that is what you want. Launches are not concerned.",
            )

    async def _check_disks_image(self, image: str) -> Finding:
        if await self._inspected("inspect_image", image):
            return good("disks", f"There is the image {image}, which makes disks.")
        build = f"docker build -f etc/docker/Dockerfile --target disks -t {image} ."
        return problem("disks", f"There is no image {image}, which would make disks.", build)

    async def _check_network(self, network: str, command: str) -> Finding:
        try:
            await self._call("inspect_network", network)
        except EngineUnavailable:
            return problem("network", f"There is no network {network}, where servers are to be.", f"{command}")
        return good("network", f"There is the network {network}.")

    async def servers(self, api_url: str) -> list[Found]:
        """Containers that are no swarm's; stopped ones, too."""
        containers = await self._call("containers", all=True)
        own = [each for each in containers if "com.docker.swarm.service.id" not in (each["Labels"] or {})]
        found = [await self._inspected("inspect_container", each["Id"]) for each in own]
        return [
            _found("container", each["Id"], each["Name"].lstrip("/"), environment, each["Created"])
            for each in found
            if each
            and not self._kept(each)
            and belongs(environment := variables(each["Config"]["Env"] or ()), api_url)
            and self._in_network(each["NetworkSettings"]["Networks"] or {})
        ]

    def _kept(self, container: Any) -> bool:
        """Whether an administrator keeps it, with all that its user has written, for the next plain start."""
        stopped = not container["State"]["Running"]
        return stopped and not self._spawner.remove and not container["Name"].endswith(".launch")

    def _in_network(self, networks: dict[str, Any]) -> bool:
        """Two Hubs that servers know by the same name have different networks."""
        name = self._spawner.network_name
        return not name or name in networks

    async def _inspected(self, method: str, name: str) -> Any:
        try:
            return await self._call(method, name)
        except EngineUnavailable as error:
            if isinstance(error.__cause__, NotFound):
                return None
            raise

    async def remove(self, found: Found) -> None:
        """Remove the container, with its anonymous volumes."""
        await self._gone("remove_container", found.id, v=True, force=True)

    async def volumes(self) -> list[Kept]:
        """Docker's volumes with the launcher's label, and disks that have lost theirs."""
        made = (await self._call("volumes", filters={"label": f"{_MADE}=jhlauncher"}))["Volumes"] or []
        labels = {volume["Name"]: volume["Labels"] for volume in made}
        kinds = {each[KIND_LABEL] for each in labels.values() if KIND_LABEL in each}
        disks = {disk.name: disk for kind in sorted({*kinds, *self._kind()}) for disk in await self._list(kind)}
        users = await self._users_of_volumes()
        return [
            Kept(
                name,
                labels.get(name, {}).get("hub.jupyter.org/username", ""),
                disks[name].size if name in disks else None,
                disks[name].used if name in disks else None,
                tuple(users.get(name, ())),
            )
            for name in sorted({*labels, *disks})
        ]

    def _kind(self) -> list[str]:
        """Of the disks that new volumes are; none if they are folders."""
        return list(filter(None, [getattr(self._spawner, "disks", "")]))

    async def _list(self, kind: Any) -> list[Disk]:
        try:
            return await asyncio.to_thread(self._disks(kind).listed)
        except DiskError as error:
            raise EngineUnavailable(str(error)) from error

    def _disks(self, kind: Any) -> Disks:
        if not hasattr(self._spawner, "disks_of"):
            raise EngineUnavailable(f"{type(self._spawner).__name__} is not of the launcher, and knows no disks")
        disks: Disks = self._spawner.disks_of(kind)
        return disks

    async def _users_of_volumes(self) -> dict[str, list[str]]:
        """The containers that have each volume, also those that have ended."""
        users: dict[str, list[str]] = {}
        for container in await self._call("containers", all=True):
            for mount in container["Mounts"]:
                if mount["Type"] == "volume":
                    users.setdefault(mount["Name"], []).append(container["Names"][0].lstrip("/"))
        return users

    async def grow_volume(self, name: str, size: int) -> None:
        """A disk, and its file system."""
        labels = await self._labels(name)
        if labels is None or KIND_LABEL not in labels:
            why = "there is no such volume of the launcher's" if labels is None else "it is no disk, and has no size"
            raise Refused(f"{name}: {why}")
        await self._disk_work(self._disks(labels[KIND_LABEL]).grow, name, size)

    async def remove_volume(self, name: str) -> None:
        """Docker's volume, unless a container has it, and then the disk."""
        labels = await self._labels(name)
        if labels is None:
            kinds = [kind for kind in self._kind() if name in {disk.name for disk in await self._list(kind)}]
            if not kinds:
                raise Refused(f"{name}: there is no such volume of the launcher's")
        else:
            kinds = [labels[KIND_LABEL]] if KIND_LABEL in labels else []
            try:
                await self._gone("remove_volume", name)
            except EngineUnavailable as error:
                if isinstance(error.__cause__, APIError) and error.__cause__.status_code == 409:
                    raise Refused(f"{name}: {error}") from error
                raise
        for kind in kinds:
            await self._disk_work(self._disks(kind).remove, name)

    async def _labels(self, name: str) -> dict[str, str] | None:
        """Of a volume of the launcher's; None if it is none."""
        volume = await self._inspected("inspect_volume", name)
        labels: dict[str, str] = (volume or {}).get("Labels") or {}
        return labels if labels.get(_MADE) == "jhlauncher" else None

    async def _disk_work(self, work: Callable[..., None], *args: Any) -> None:
        try:
            await asyncio.to_thread(work, *args)
        except DiskError as error:
            raise Refused(str(error)) from error

    async def _gone(self, method: str, name: str, **arguments: Any) -> None:
        try:
            await self._call(method, name, **arguments)
        except EngineUnavailable as error:
            if not isinstance(error.__cause__, NotFound):
                raise

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        def call() -> Any:
            function: Callable[..., Any] = getattr(self._spawner.client, method)
            return function(*args, **kwargs)

        try:
            return await asyncio.to_thread(call)
        except APIError as error:
            raise EngineUnavailable(str(error.explanation or error)) from error
        except (DockerException, OSError) as error:
            raise EngineUnavailable(str(error)) from error


class SwarmEngine(DockerEngine):
    """The ``swarm`` engine."""

    async def _check_more(self, info: Any) -> AsyncIterator[Finding]:
        swarm = info.get("Swarm") or {}
        if swarm.get("LocalNodeState") != "active":
            yield problem("swarm", "This Docker Engine is in no swarm.", "docker swarm init, or join one as a manager.")
            return
        if not swarm.get("ControlAvailable"):
            yield problem(
                "swarm",
                "This node is a worker: only managers can start services.",
                "Run the Hub on a manager (placement constraint node.role == manager), or docker node promote NODE.",
            )
            return
        if self._kind():
            yield await self._check_disks_image(self._spawner.disks_image)
        yield good("swarm", f"This node is a manager of a swarm of {swarm.get('Nodes')}.")
        network = self._spawner.network_name
        if network:
            yield await self._check_network(network, f"docker network create -d overlay --attachable {network}")
        else:
            yield problem(
                "network",
                "SwarmSpawner.network_name is not set: the Hub and the servers do not find each other.",
                "Set it to an overlay network that the Hub's container is on, too.",
            )

    async def servers(self, api_url: str) -> list[Found]:
        """Services."""
        found = []
        network = self._spawner.network_name
        known = await self._inspected("inspect_network", network) if network else None
        for service in await self._call("services"):
            task = service["Spec"]["TaskTemplate"]
            environment = variables(task.get("ContainerSpec", {}).get("Env") or ())
            networks = {each["Target"] for each in task.get("Networks") or ()}
            here = not network or network in networks or (known is not None and known["Id"] in networks)
            if here and belongs(environment, api_url):
                name = service["Spec"]["Name"]
                found.append(_found("service", service["ID"], name, environment, service["CreatedAt"]))
        return found

    async def remove(self, found: Found) -> None:
        """Remove the service; Swarm ends its tasks."""
        await self._gone("remove_service", found.id)


def _found(kind: Any, id: str, name: str, environment: dict[str, str], since: str) -> Found:
    user, server = environment["JUPYTERHUB_USER"], environment.get("JUPYTERHUB_SERVER_NAME", "")
    token = environment.get("JUPYTERHUB_API_TOKEN", "")
    return Found(kind, id, name, user, server, since.partition(".")[0], token)
