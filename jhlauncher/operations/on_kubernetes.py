"""Kubernetes, as an operator looks at it: do the rights that are there suffice, and which servers are there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import aiohttp
from kubernetes_asyncio import client
from kubernetes_asyncio.client.rest import ApiException

from ..apiserver import words_of
from .findings import Finding, good, problem, warning
from .found import EngineUnavailable, Found, Kept, Refused, belongs

RIGHTS = {
    "pods": ["list", "watch", "create", "delete"],
    "events": ["list", "watch"],
    "pods/log": ["get"],
    "persistentvolumeclaims": ["get", "create"],
}
"""What the Hub's service account needs in its namespace, as etc/kubernetes/hub/rbac.yaml gives it."""

_MADE = "app.kubernetes.io/managed-by"
_DECIMAL = {unit: 1000**power for power, unit in enumerate("kMGTPE", 1)}
_UNITS = {"": 1, **_DECIMAL, **{f"{unit}i": 1024**power for power, unit in enumerate("KMGTPE", 1)}}
"""What stands behind a quantity of bytes in Kubernetes."""
_TIMEOUT = 60
"""Seconds for a list of all pods."""

_PROMISED = {("persistentvolumeclaims", "create"), ("pods/log", "get"), ("events", "list"), ("events", "watch")}
"""Without which servers start, too: volumes are not made, crashes told without a log, starts without their steps."""


class KubernetesEngine:
    """The ``kubernetes`` engine.

    Args:
        spawner: one that is configured as the Hub's are; of nobody's server.

    """

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner
        self.forgetting_removes_volumes = bool(spawner.delete_pvc and spawner.storage_pvc_ensure)
        self._client = spawner.api.api_client

    async def check(self) -> AsyncIterator[Finding]:
        """Whether the API server answers, and what the Hub may there."""
        try:
            version = await self._asked(client.VersionApi(self._client).get_code())
        except EngineUnavailable as error:
            yield problem(
                "engine",
                f"Kubernetes can't be used: {error}",
                "Run the Hub in a pod with a service account, or give it a kubeconfig ($KUBECONFIG).",
            )
            return
        yield good("engine", f"Kubernetes {version.git_version} answers.")
        namespace = self._spawner.namespace
        lacking = []
        try:
            for resource, verbs in RIGHTS.items():
                lacking += [(resource, verb) for verb in verbs if not await self._may(resource, verb)]
        except EngineUnavailable as error:
            yield problem("rights", f"The Hub's rights can't be asked for: {error}", "Check the Hub's service account.")
            return
        for resource, verb in lacking:
            message = f"The Hub's service account may not {verb} {resource} in the namespace {namespace}."
            rate = warning if (resource, verb) in _PROMISED else problem
            yield rate(
                "rights",
                message,
                "Give it the rules of etc/kubernetes/hub/rbac.yaml; with the Helm chart, pod-logs.yaml.",
            )
        if not lacking:
            yield good("rights", f"The Hub has the rights that it needs in the namespace {namespace}.")

    async def _may(self, resource: str, verb: str) -> bool:
        name, _, part = resource.partition("/")
        attributes = {"namespace": self._namespace, "verb": verb, "resource": name, "subresource": part}
        review = client.V1SelfSubjectAccessReview(spec={"resourceAttributes": attributes})
        api = client.AuthorizationV1Api(self._client)
        answer = await self._asked(api.create_self_subject_access_review(review))
        return bool(answer.status.allowed)

    @property
    def _namespace(self) -> str:
        """With a namespace for each user, the rights must be everywhere."""
        return "" if self._spawner.enable_user_namespaces else str(self._spawner.namespace)

    async def servers(self, api_url: str) -> list[Found]:
        """Pods; those that are about to go, or that the administrator keeps, don't count."""
        if not self._namespace:
            raise EngineUnavailable("where each user has a namespace, it can't be told which pods are this Hub's")
        label = f"component={self._spawner.component_label}"
        listed = client.CoreV1Api(self._client).list_namespaced_pod(
            self._namespace, label_selector=label, _request_timeout=_TIMEOUT
        )
        found = []
        for pod in (await self._asked(listed)).items:
            if pod.status.phase in ("Succeeded", "Failed") and not self._spawner.delete_stopped_pods:
                continue
            variables = {each.name: each.value or "" for each in pod.spec.containers[0].env or ()}
            if belongs(variables, api_url) and not pod.metadata.deletion_timestamp:
                user, server = variables["JUPYTERHUB_USER"], variables.get("JUPYTERHUB_SERVER_NAME", "")
                name = f"{pod.metadata.namespace}/{pod.metadata.name}"
                since = f"{pod.metadata.creation_timestamp:%Y-%m-%dT%H:%M:%S}"
                token = variables.get("JUPYTERHUB_API_TOKEN", "")
                found.append(Found("pod", pod.metadata.uid, name, user, server, since, token))
        return found

    async def remove(self, found: Found) -> None:
        """Delete the pod, if it still is the one that was found."""
        namespace, _, name = found.name.partition("/")
        body = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=found.id))
        try:
            await self._asked(client.CoreV1Api(self._client).delete_namespaced_pod(name, namespace, body=body))
        except EngineUnavailable as error:
            if not (isinstance(error.__cause__, ApiException) and error.__cause__.status in (404, 409)):
                raise

    async def volumes(self) -> list[Kept]:
        """Claims with the launcher's label."""
        users = await self._users_of_claims()
        listed = client.CoreV1Api(self._client).list_namespaced_persistent_volume_claim(
            self._one_namespace, label_selector=f"{_MADE}=jhlauncher", _request_timeout=_TIMEOUT
        )
        return [
            Kept(
                claim.metadata.name,
                (claim.metadata.annotations or {}).get("hub.jupyter.org/username", ""),
                _size_of(claim),
                None,
                tuple(users.get(claim.metadata.name, ())),
            )
            for claim in (await self._asked(listed)).items
        ]

    @property
    def _one_namespace(self) -> str:
        if not self._namespace:
            raise EngineUnavailable("where each user has a namespace, claims are looked at with kubectl")
        return self._namespace

    async def _users_of_claims(self) -> dict[str, list[str]]:
        """The pods that have each claim and have not ended."""
        users: dict[str, list[str]] = {}
        listed = client.CoreV1Api(self._client).list_namespaced_pod(self._one_namespace, _request_timeout=_TIMEOUT)
        for pod in (await self._asked(listed)).items:
            for volume in pod.spec.volumes or () if pod.status.phase not in ("Succeeded", "Failed") else ():
                if volume.persistent_volume_claim:
                    users.setdefault(volume.persistent_volume_claim.claim_name, []).append(pod.metadata.name)
        return users

    async def grow_volume(self, name: str, size: int) -> None:
        """Ask for more; whether there can be more, the StorageClass says."""
        claim = await self._claim(name)
        if size < _size_of(claim):
            raise Refused(f"{name}: it has {_size_of(claim)} bytes; it can grow, not shrink")
        patch = {"spec": {"resources": {"requests": {"storage": str(size)}}}}
        asked = client.CoreV1Api(self._client).patch_namespaced_persistent_volume_claim(
            name, self._one_namespace, patch, _request_timeout=_TIMEOUT
        )
        try:
            await self._asked(asked)
        except EngineUnavailable as error:
            if "must support resize" in str(error) or "allowVolumeExpansion" in str(error):
                storage = claim.spec.storage_class_name
                why = f"its StorageClass {storage} does not allow it (allowVolumeExpansion)"
                raise Refused(f"{name}: {why}") from error
            raise

    async def remove_volume(self, name: str) -> None:
        """A claim that no pod has."""
        claim = await self._claim(name)
        if pods := (await self._users_of_claims()).get(name):
            raise Refused(f"{name}: it is in use by {', '.join(pods)}")
        body = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=claim.metadata.uid))
        api = client.CoreV1Api(self._client)
        await self._asked(api.delete_namespaced_persistent_volume_claim(name, self._one_namespace, body=body))

    async def _claim(self, name: str) -> Any:
        api = client.CoreV1Api(self._client)
        try:
            claim = await self._asked(
                api.read_namespaced_persistent_volume_claim(name, self._one_namespace, _request_timeout=_TIMEOUT)
            )
        except EngineUnavailable as error:
            if isinstance(error.__cause__, ApiException) and error.__cause__.status == 404:
                raise Refused(f"{name}: there is no such volume of the launcher's") from error
            raise
        if (claim.metadata.labels or {}).get(_MADE) != "jhlauncher":
            raise Refused(f"{name}: there is no such volume of the launcher's")
        return claim

    async def _asked(self, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except ApiException as error:
            raise EngineUnavailable(words_of(error.body, error.reason)) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineUnavailable(str(error)) from error


def _size_of(claim: Any) -> int:
    """Bytes that a claim has, or asks for while it has none."""
    amounts = claim.status.capacity or claim.spec.resources.requests
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", amounts["storage"]).groups()  # type: ignore[union-attr]
    return int(float(number) * _UNITS[unit])
