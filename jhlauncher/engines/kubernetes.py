"""The ``kubernetes`` engine: a server is a pod."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from jupyterhub.utils import maybe_future
from kubernetes_asyncio import client
from kubernetes_asyncio.client import ApiException
from kubespawner import KubeSpawner
from kubespawner.slugs import safe_slug
from traitlets import Float, Unicode, default

from ..apiserver import words_of
from ..bell import first_ring
from ..failures import MAX_LINES, Evidence, Failure, StartFailed
from ..models import Gpu, LaunchSpec, Volume
from ..reflectors import telling
from ..spawner import LauncherSpawnerMixin
from . import pods

_reflector_starts: set[asyncio.Task[Any]] = set()
"""Under way; the loop itself keeps no reference to them."""


class KubernetesLaunch(LauncherSpawnerMixin):
    """What a launch means for KubeSpawner and its descendants.

    What was launched is written into the pod after everything else, so that neither templates nor profiles nor the
    administrator's ``extra_pod_config``, ``extra_container_config`` and ``modify_pod_hook`` can change it.
    """

    if TYPE_CHECKING:
        api: Any
        image: str
        pod_name: str
        namespace: str
        mem_limit: int
        delete_stopped_pods: bool
        enable_user_namespaces: bool
        events: list[dict[str, Any]]
        pod_reflector: Any
        event_reflector: Any
        modify_pod_hook: Any
        profile_list: Any

    scheduling_timeout = Float(
        30,
        min=0,
        help="""Seconds that a server may wait for a node with room for it, before the start is given up.

        Where the cluster's autoscaler says that it adds a node, only start_timeout counts.
        """,
    ).tag(config=True)
    gpu_resource = Unicode("nvidia.com/gpu", help="The extended resource that GPUs are in this cluster.").tag(
        config=True
    )

    @default("fs_gid")
    def _default_fs_gid(self) -> int:
        """Volumes belong to the group "users", as JupyterHub's chart and Jupyter's images have it."""
        return 100

    # -- what

    async def apply_launch(self, spec: LaunchSpec) -> None:
        """Apply the spec; profiles are for plain starts."""
        self.profile_list = []
        await super().apply_launch(spec)
        hook = self.modify_pod_hook

        async def shape(spawner: Any, pod: Any) -> Any:
            if hook:
                pod = await maybe_future(hook(spawner, pod))
            self._shape(pod, spec)
            return pod

        self.modify_pod_hook = shape

    def apply_pull(self, spec: LaunchSpec) -> None:
        """Has traits, but `_shape` has the last word."""

    def apply_gpu(self, gpu: Gpu) -> None:
        """Has traits, but `_shape` has the last word."""

    def apply_env(self, env: dict[str, str]) -> None:
        """`_shape` sets them: KubeSpawner takes braces in values for templates."""

    def apply_volumes(self, volumes: list[Volume]) -> None:
        """`_shape` mounts them: KubeSpawner takes braces in paths for templates."""

    async def check_volumes(self, volumes: list[Volume]) -> None:
        """The claims are in the user's namespace, which may be new."""
        if self.enable_user_namespaces:
            await self._ensure_namespace()  # type: ignore[attr-defined]
        await super().check_volumes(volumes)

    async def has_volume(self, volume: Volume) -> bool:
        """Kubernetes would wait forever for a claim that does not exist."""
        try:
            await self.api.read_namespaced_persistent_volume_claim(volume.name, self.namespace, _request_timeout=10)
        except ApiException as error:
            if error.status != 404:
                raise self._volume_failed(volume, error) from error
            return False
        return True

    async def create_volume(self, volume: Volume) -> None:
        """Make a claim."""
        claim = _claim(volume, self.user.name)
        try:
            await self.api.create_namespaced_persistent_volume_claim(self.namespace, claim, _request_timeout=10)
        except ApiException as error:
            if error.status != 409:  # made by somebody else meanwhile
                raise self._volume_failed(volume, error) from error

    def _volume_failed(self, volume: Volume, error: ApiException) -> StartFailed:
        message = words_of(error.body, error.reason)
        if "exceeded quota" in message:
            return StartFailed(Failure(reason="quota_exceeded", message=f"The volume {volume.name}: {message}"))
        return StartFailed(Failure(reason="volume_failed", message=f"The volume {volume.name} can't be had: {message}"))

    def _shape(self, pod: Any, spec: LaunchSpec) -> None:
        """The last word on the pod that is about to be made."""
        container = next(each for each in pod.spec.containers if each.name == pods.CONTAINER)
        container.image = spec.image
        if spec.pull_policy:
            container.image_pull_policy = spec.pull_policy
        if spec.pull_secrets:
            secrets = [client.V1LocalObjectReference(name=name) for name in spec.pull_secrets]
            pod.spec.image_pull_secrets = [*(pod.spec.image_pull_secrets or []), *secrets]
        env = [client.V1EnvVar(name=name, value=_escaped(value)) for name, value in self.launch_env().items()]
        container.env = _with(container.env, env)
        self._shape_resources(container, spec)
        self._shape_volumes(pod, container, spec)

    def _shape_resources(self, container: Any, spec: LaunchSpec) -> None:
        limits, requests = (dict(_field(container.resources, key) or {}) for key in ("limits", "requests"))
        for name, amount in (("cpu", spec.cpu), ("memory", spec.memory)):
            if amount:  # all of it is the launch's: half of each would be nobody's wish
                _put(limits, name, amount.limit)
                _put(requests, name, amount.request)
        if spec.gpu:
            for amounts in (limits, requests):  # an extended resource can't be overcommitted
                _put(amounts, self.gpu_resource, spec.gpu.count)
        claims = _field(container.resources, "claims")
        container.resources = client.V1ResourceRequirements(claims=claims, limits=limits, requests=requests)

    def _shape_volumes(self, pod: Any, container: Any, spec: LaunchSpec) -> None:
        volumes, mounts = [], []
        names = {name: f"launch-{index}" for index, name in enumerate(dict.fromkeys(v.name for v in spec.volumes))}
        for claim, name in names.items():
            read_only = all(volume.read_only for volume in spec.volumes if volume.name == claim)
            source = client.V1PersistentVolumeClaimVolumeSource(claim_name=claim, read_only=read_only)
            volumes.append(client.V1Volume(name=name, persistent_volume_claim=source))
        for volume in spec.volumes:
            mount = client.V1VolumeMount(name=names[volume.name], mount_path=volume.mount, read_only=volume.read_only)
            mount.sub_path = volume.subpath or None
            mounts.append(mount)
        if spec.gpu and spec.gpu.count:
            memory = client.V1EmptyDirVolumeSource(medium="Memory")
            volumes.append(client.V1Volume(name="launch-shm", empty_dir=memory))
            mounts.append(client.V1VolumeMount(name="launch-shm", mount_path="/dev/shm"))  # noqa: S108
        pod.spec.volumes = _with(pod.spec.volumes, volumes)
        container.volume_mounts = _with(container.volume_mounts, mounts, key="mount_path")

    # -- a start

    async def _start_reflector(self, kind: str, reflector_class: Any, **kwargs: Any) -> Any:
        """KubeSpawner's views, that tell when they change.

        They are shared by all servers: a start that is cancelled while the first view is made must not leave one that
        never gets ready, for which every later start would wait.
        """
        making = super()._start_reflector(kind, telling(reflector_class), **kwargs)  # type: ignore[misc]
        task = asyncio.create_task(making)
        _reflector_starts.add(task)
        task.add_done_callback(_reflector_starts.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(task)

    async def _make_create_pod_request(self, pod: Any, request_timeout: float) -> bool:
        """As KubeSpawner's, which writes the whole pod into the log when it is refused: env and all."""
        self._pod_requested = True
        try:
            await self.api.create_namespaced_pod(self.namespace, pod, _request_timeout=request_timeout)
        except TimeoutError:
            return False
        except ApiException as error:
            if error.status != 409:
                raise
            await self.stop(now=True)  # one of the same name is still there
            self._pod_requested = True
            return False
        return True

    async def watch_start(self) -> Failure:
        """The cluster tells what becomes of the pod."""
        await self._start_watching_pods()  # type: ignore[attr-defined]
        old = _uid(self._pod())
        loop = asyncio.get_running_loop()
        waiting_since: float = 0
        while True:
            rung = [reflector.bell.listen() for reflector in self._reflectors()]
            pod = self._pod()
            if pod and _uid(pod) != old:
                events = self._tell_events(_uid(pod))
                failure = pods.failure_of(pod, events, self.mem_limit)
                if failure:
                    return failure
                why = pods.unschedulable(pod)
                waiting_since = 0 if why is None else waiting_since or loop.time()
                self._suspicion = pods.mount_trouble(events) if why is None else pods.unschedulable_failure(why)
                patient = any(event["reason"] == "TriggeredScaleUp" for event in events) or (
                    self._suspicion and self._suspicion.reason == "volume_failed"  # storage may take its time
                )
                if self._suspicion and not patient and loop.time() - waiting_since >= self.scheduling_timeout:
                    return self._suspicion
            await first_ring(rung, 1 if waiting_since else 30)

    def _reflectors(self) -> list[Any]:
        return [each for each in (self.pod_reflector, self.event_reflector) if each]

    def _pod(self) -> Any:
        """The pod as the cluster has it; None if there is none."""
        return self.pod_reflector.pods.get(f"{self.namespace}/{self.pod_name}") if self.pod_reflector else None

    def _tell_events(self, uid: str | None) -> list[dict[str, Any]]:
        """The pod's events; those that are new are told."""
        events = [event for event in self.events if event["involvedObject"].get("uid") == uid]
        for event in events:
            key = (event["metadata"]["uid"], event.get("count"))
            if key not in self._told:
                self._told.add(key)
                self.step(*pods.step_of(event))
        return events

    async def start(self) -> Any:
        """Start the pod."""
        self._starting = True  # and stays so, if the start comes to nothing
        url = await super().start()
        self._starting = False
        return url

    def _reset(self) -> None:
        super()._reset()
        self._pod_requested = self._starting = False
        self._told: set[tuple[str, int | None]] = set()

    async def why_ended(self) -> Failure | None:
        """As the pod says."""
        pod = self._pod()
        return pods.failure_of(pod, [], self.mem_limit) if pod else None

    async def explain(self, error: Exception) -> Failure | None:
        """What Kubernetes' refusal means."""
        if isinstance(error, ApiException):
            message = words_of(error.body, error.reason)
            if error.status == 403 and ("quota" in message or "usage per" in message):
                return Failure(reason="quota_exceeded", message=f"Kubernetes did not accept the server: {message}")
            return Failure(reason="start_failed", message=f"Kubernetes did not accept the server: {message}")
        return None

    async def collect_evidence(self) -> Evidence:
        """The pod's events, and the log and exit code of its container."""
        pod = self._pod() if self._pod_requested else None
        if not pod:
            return Evidence()
        events = [pods.line_of(e) for e in self.events if e["involvedObject"].get("uid") == _uid(pod)]
        exit_code, previous = pods.termination(pod)
        log = ""
        with suppress(ApiException):  # there is no container yet, or the role lacks pods/log
            log = await self.api.read_namespaced_pod_log(
                self.pod_name, self.namespace, container=pods.CONTAINER, tail_lines=MAX_LINES, previous=previous
            )
        return Evidence(exit_code=exit_code, log=(log or "").splitlines(), events=events)

    async def stop(self, now: bool = False) -> None:
        """Delete the pod and wait until it is gone; one that never was ready has nothing to end in grace."""
        await super().stop(now or self._starting)  # type: ignore[misc]
        self._pod_requested = False

    async def _make_delete_pod_request(self, pod_name: str, *args: Any) -> bool:
        """As KubeSpawner's, and wait until the pod is gone: KubeSpawner looks for that ever more seldom."""
        deleted = bool(await super()._make_delete_pod_request(pod_name, *args))  # type: ignore[misc]
        with suppress(TimeoutError):  # KubeSpawner says so, and makes its view anew
            async with asyncio.timeout(self.start_timeout if deleted else 0):
                while self.pod_reflector:
                    rung = self.pod_reflector.bell.listen()
                    if f"{self.namespace}/{pod_name}" not in self.pod_reflector.pods:
                        break
                    await first_ring([rung], 30)
        return deleted

    async def remove_remains(self) -> None:
        """The pod, unless it is a plain start's and the administrator keeps pods that have ended."""
        if self._pod_requested and (self._spec or self.delete_stopped_pods):
            await self.stop(now=True)


class LauncherKubeSpawner(KubernetesLaunch, KubeSpawner):  # type: ignore[misc]
    """The ``kubernetes`` engine: servers as pods (see `KubeSpawner`)."""


def _uid(pod: Any) -> str | None:
    return pod["metadata"]["uid"] if pod else None


def _escaped(value: str) -> str:
    """The value as it comes out of Kubernetes' expansion of ``$(NAME)`` unchanged."""
    return value.replace("$", "$$")


def _put(amounts: dict[str, Any], name: str, value: Any) -> None:
    amounts.pop(name, None)
    if value:
        amounts[name] = str(value)


def _with(items: Any, ours: list[Any], key: str = "name") -> list[Any]:
    """The items and ours, which take the place of those that have the same key."""
    keys = {_key(item, key) for item in ours}
    return [item for item in items or [] if _key(item, key) not in keys] + ours


def _key(item: Any, key: str) -> Any:
    value = _field(item, key)
    return value.rstrip("/") if isinstance(value, str) else value


def _field(item: Any, name: str) -> Any:
    """The administrator's configuration may have left objects of the client's, or plain dicts."""
    if isinstance(item, dict):
        first, *rest = name.split("_")
        return item.get(name) or item.get(first + "".join(part.title() for part in rest))
    return getattr(item, name, None)


def _claim(volume: Volume, user: str) -> Any:
    """The claim for a volume that the policy lets us make."""
    new = volume.create
    assert new  # noqa: S101  (for mypy)
    return client.V1PersistentVolumeClaim(
        metadata=client.V1ObjectMeta(
            name=volume.name,
            labels={"app.kubernetes.io/managed-by": "jhlauncher", "hub.jupyter.org/username": safe_slug(user)},
            annotations={"hub.jupyter.org/username": user},
        ),
        spec=client.V1PersistentVolumeClaimSpec(
            access_modes=[new.access_mode],
            storage_class_name=new.storage_class,
            resources=client.V1VolumeResourceRequirements(requests={"storage": str(new.size)}),
        ),
    )
