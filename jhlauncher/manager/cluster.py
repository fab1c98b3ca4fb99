"""Kubernetes' API, as far as the manager needs it: any kind that the cluster serves, in one namespace.

The kinds are found by discovery (https://kubernetes.io/docs/reference/using-api/api-concepts/). kubernetes_asyncio's
own dynamic client is not used for that: it keeps what it discovers in a file of a foreseeable name in /tmp, and hides
refusals. Every object carries the label `SERVICE` with its service's key; nothing without it is changed or removed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import yaml
from kubernetes_asyncio import client, config
from traitlets import Float, List, TraitError, Unicode, default
from traitlets.config import LoggingConfigurable

from .. import environment
from ..apiserver import words_of
from .errors import BadDescription, KubernetesRefused
from .rendering import Json, Ref, labelled, ref_of

MANAGED_BY = "app.kubernetes.io/managed-by"
INSTANCE = "jhlauncher.jupyter.org/manager"
SERVICE = "jhlauncher.jupyter.org/service"
"""Label: which service an object belongs to, by its key."""
MAIN = "jhlauncher.jupyter.org/main"
"""Label: whether a pod is the one that is looked at."""
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class _Kind(NamedTuple):
    """How a kind is addressed."""

    plural: str
    namespaced: bool


class Cluster(LoggingConfigurable):
    """Objects of services in a cluster."""

    namespace = Unicode(
        help="Where services are. Default: $DEPLOYMENT_NAMESPACE, or else the pod's own namespace, or `default`."
    ).tag(config=True)
    deployment_name = Unicode(
        help="What this manager is called in the cluster, a part of the names of Secrets. "
        "Default: $DEPLOYMENT_NAME, or else `k8smgr`."
    ).tag(config=True)
    kubeconfig = Unicode(
        help="How the cluster is reached. Default: $KUBECONFIG; with neither, the pod's service account."
    ).tag(config=True)
    request_timeout = Float(30, min=1, help="Seconds to wait for an answer of the API server.").tag(config=True)

    reserved_names = List(
        Unicode(),
        ["svc-*", "hub", "proxy-*", "jupyter*", "kubernetes"],
        help="""Patterns of names that Services of users' jobs may not have: others' names, who may not be there yet.

        `jupyter*`: Kubernetes tells each new pod of a Service in variables like JUPYTER_PORT, which are Jupyter's own.
        """,
    ).tag(config=True, key="userjobs.reserved_names")
    retry_delay = Float(
        0.5, min=0.01, help="Seconds before a busy API server is asked again; twice as long each of four times."
    ).tag(config=True)

    @default("namespace")
    def _default_namespace(self) -> str:
        own = _OWN_NAMESPACE.read_text(encoding="ascii").strip() if _OWN_NAMESPACE.is_file() else "default"
        return environment.text("DEPLOYMENT_NAMESPACE", own)

    @default("deployment_name")
    def _default_deployment_name(self) -> str:
        return environment.text("DEPLOYMENT_NAME", "k8smgr")

    @default("kubeconfig")
    def _default_kubeconfig(self) -> str:
        return environment.text("KUBECONFIG")

    async def start(self) -> None:
        """Make the client. No request is sent.

        Raises:
            TraitError: it is not known how the cluster is reached.

        """
        try:
            if self.kubeconfig:
                for path in self.kubeconfig.split(os.pathsep):
                    await asyncio.to_thread(Path(path).read_bytes)  # the library says less when it can't be read
                await config.load_kube_config(config_file=self.kubeconfig)
            else:
                config.load_incluster_config()
        except (config.ConfigException, OSError, yaml.YAMLError) as error:
            how = (
                f"KUBECONFIG={self.kubeconfig} can't be used" if self.kubeconfig else "set KUBECONFIG, or run in a pod"
            )
            raise TraitError(f"the manager has no cluster: {how} ({error})") from None
        self.client = client.ApiClient()
        self._kinds: dict[str, asyncio.Task[dict[str, _Kind]]] = {}

    async def stop(self) -> None:
        """Close connections."""
        for task in self._kinds.values():
            task.cancel()
        await asyncio.gather(*self._kinds.values(), return_exceptions=True)
        await self.client.close()

    @property
    def address(self) -> str:
        """Of the API server."""
        return str(self.client.configuration.host)

    async def may_list(self, plural: str) -> None:
        """Return if objects of this kind, of core/v1, can be listed.

        Raises:
            KubernetesRefused: they can't; code 0: the cluster does not answer.

        """
        await self._request("GET", f"/api/v1/namespaces/{quote(self.namespace)}/{plural}?limit=1")

    def labels(self, key: str) -> dict[str, str]:
        """Of all objects of a service."""
        return {MANAGED_BY: "jhlauncher", INSTANCE: self.deployment_name, SERVICE: key}

    async def create(self, item: Json, key: str, main: bool = False) -> None:
        """Make an object of a service.

        Args:
            item: the object.
            key: the service's.
            main: the service is its pod.

        Raises:
            BadDescription: the cluster does not know its kind.
            KubernetesRefused: it was not made.

        """
        body = labelled(item, self.labels(key), {MAIN: "true"} if main else None)
        try:
            await self._request("POST", await self._path(ref_of(item), named=False), body)
        except KubernetesRefused as error:
            # asked again, a busy API server may have done it the first time
            if error.code != 409 or await self._ours(ref_of(item), key) is None:
                raise

    async def apply(self, item: Json, key: str) -> None:
        """Make an object of a service, or merge what is given into the one that there is (RFC 7396).

        Raises:
            BadDescription: the cluster does not know its kind.
            KubernetesRefused: it was not done, for example because the object is somebody else's.

        """
        # looked for first: what is only a part of an object can't be made, and would be refused as such
        if await self._ours(ref_of(item), key) is None:
            await self.create(item, key)
        else:
            path = await self._path(ref_of(item))
            await self._request("PATCH", path, labelled(item, self.labels(key)), "application/merge-patch+json")

    async def remove(self, refs: Iterable[Ref], key: str) -> None:
        """Remove objects of a service, one after the other; all are tried, unless Kubernetes does not answer.

        Raises:
            KubernetesRefused: one could not be removed.

        """
        problem = None
        for ref in refs:
            try:
                await self._remove(ref, key)
            except KubernetesRefused as error:
                self.log.warning("%s can't be removed: %s", ref, error.message)
                problem = error
                if not error.code:
                    break
            except BadDescription:
                pass  # of a kind that the cluster does not know, there is nothing
        if problem:
            raise problem

    async def _remove(self, ref: Ref, key: str) -> None:
        try:
            item = await self._ours(ref, key)
        except KubernetesRefused as error:
            if error.code != 403:
                raise
            # of a kind that the manager may not even look at, it has made none
            self.log.warning("%s is taken not to be there: %s", ref, error.message)
            return
        if item is None:
            return
        options = {"propagationPolicy": "Background", "preconditions": {"uid": item["metadata"]["uid"]}}
        try:
            await self._request("DELETE", await self._path(ref), options)
        except KubernetesRefused as error:
            if error.code not in (404, 409):  # gone meanwhile, or another of that name
                raise

    async def _ours(self, ref: Ref, key: str) -> Json | None:
        """The object, if there is one, and it is this service's."""
        try:
            item = await self._request("GET", await self._path(ref))
        except KubernetesRefused as error:
            if error.code == 404:
                return None
            raise
        return item if (item["metadata"].get("labels") or {}).get(SERVICE) == key else None

    async def secret(self, name: str, key: str) -> dict[str, str]:
        """The values in a Secret of a service; none if there is no such Secret.

        Raises:
            KubernetesRefused: it can't be read.

        """
        item = await self._ours(Ref("v1", "Secret", name), key)
        values = (item or {}).get("data") or {}
        return {name: _decoded(value) for name, value in values.items()}

    async def log_of(self, pod: str, container: str, lines: int, previous: bool = False) -> list[str]:
        """The last lines that a container has written; none if they are not to be had."""
        query = f"?container={quote(container)}&tailLines={lines}&previous={str(previous).lower()}"
        path = f"/api/v1/namespaces/{quote(self.namespace)}/pods/{quote(pod)}/log{query}"
        try:
            text = await self._text("GET", path)
        except KubernetesRefused as error:
            self.log.debug("No log of %s: %s", pod, error.message)
            return []
        return text.rstrip().splitlines()[-lines:]

    # -- how

    async def _path(self, ref: Ref, named: bool = True) -> str:
        kind = await self._kind(ref)
        root = _root(ref.api_version)
        place = f"/namespaces/{quote(self.namespace)}" if kind.namespaced else ""
        return f"{root}{place}/{kind.plural}" + (f"/{quote(ref.name, safe='')}" if named else "")

    async def _kind(self, ref: Ref) -> _Kind:
        """How objects of this kind are addressed; what the cluster says is remembered."""
        version = ref.api_version
        found = await self._discovered(version)
        if ref.kind not in found:  # it may be new
            self._kinds.pop(version, None)
            found = await self._discovered(version)
        if ref.kind not in found:
            raise BadDescription(f"the cluster has no {ref.kind} of {version}")
        return found[ref.kind]

    async def _discovered(self, version: str) -> dict[str, _Kind]:
        """The kinds of an API version; who asks at once shares the asking, and only answers are remembered."""
        if version not in self._kinds:
            self._kinds[version] = asyncio.create_task(self._discover(version), name=f"discovery of {version}")
        try:
            return await asyncio.shield(self._kinds[version])
        except Exception as error:
            self._kinds.pop(version, None)
            if isinstance(error, KubernetesRefused) and error.code == 404:
                raise BadDescription(f"the cluster has no API {version}") from error
            raise

    async def _discover(self, version: str) -> dict[str, _Kind]:
        answer = await self._request("GET", _root(version))
        return {
            each["kind"]: _Kind(each["name"], each["namespaced"])
            for each in answer["resources"]
            if "/" not in each["name"] and "create" in each["verbs"]
        }

    async def _request(self, method: str, path: str, body: Json | None = None, kind: str = "application/json") -> Any:
        """The API server's answer.

        Raises:
            KubernetesRefused: it is an error, or there is none.

        """
        text = await self._text(method, path, body, kind)
        try:
            return json.loads(text)
        except ValueError as error:
            raise KubernetesRefused(f"{method} {path} was not answered by Kubernetes", 0) from error

    async def _text(self, method: str, path: str, body: Json | None = None, kind: str = "application/json") -> str:
        """The API server's answer; asked again while it has too much to do (429, 503)."""
        delay = self.retry_delay
        while True:
            try:
                return await self._once(method, path, body, kind)
            except KubernetesRefused as error:
                if error.code not in (429, 503) or delay > self.retry_delay * 8:
                    raise
                self.log.info("Kubernetes is busy (%i to %s %s); again in %g s", error.code, method, path, delay)
            await asyncio.sleep(delay)
            delay *= 2

    async def _once(self, method: str, path: str, body: Json | None, kind: str) -> str:
        headers = {"Accept": "application/json", "Content-Type": kind}
        try:
            answer = await self.client.call_api(
                path, method, header_params=headers, body=body, auth_settings=["BearerToken"],
                _preload_content=False, _return_http_data_only=True, _request_timeout=self.request_timeout,
            )  # fmt: skip
            text: str = await answer.text(errors="replace")  # a log may have any bytes
        except client.ApiException as error:
            raise KubernetesRefused(words_of(error.body, error.reason), error.status or 0) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise KubernetesRefused(f"Kubernetes does not answer ({type(error).__name__})", 0) from error
        if answer.status >= 400:
            raise KubernetesRefused(words_of(text, answer.reason), answer.status)
        return text


def _root(version: str) -> str:
    return f"/api/{quote(version)}" if "/" not in version else f"/apis/{quote(version)}"


def _decoded(value: str) -> str:
    return base64.b64decode(value).decode(errors="replace")
