"""What the manager's tests share: a namespace of a real cluster with the least rights, and a manager to be killed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kubernetes_asyncio import client as kube
from kubernetes_asyncio import config as kube_config
from kubernetes_asyncio import utils as kube_utils

from jhlauncher.ports import SERVICES, free_port
from tests.engines.hubs import REPOSITORY, write_kubeconfig

ETC = REPOSITORY / "etc/manager"
PASSWORDS = {"hub": "the hub's password", "other": "the other's: password", "logs": "logs only", "none": "no groups"}
TOKEN = "a-token-of-the-hub"
IMAGE = os.environ.get("JHLAUNCHER_TEST_IMAGE", "")

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: depl-<id>
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{name: depl-<id>}}}}
  template:
    metadata: {{labels: {{name: depl-<id>}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: {image}
        imagePullPolicy: Never
        command: {command}
        envFrom: [{{secretRef: {{name: <secret_name>}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: svc-<id>}}
spec: {{selector: {{name: depl-<id>}}, ports: [{{port: 8080}}]}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: conf-<id>}}
data: {{user: "<user_id>", unique: <unique_user_id>, input: "<input>"}}
"""
CRASH = "import os, sys; print('<b>it can not go on</b>'); print('because'); sys.exit(3)"
SLEEP = ["sleep", "600"]
UPDATE = """
apiVersion: v1
kind: ConfigMap
metadata: {name: conf-<id>}
data: {added: "by the update"}
---
apiVersion: v1
kind: Service
metadata: {name: svc-<id>-more}
spec: {selector: {name: depl-<id>}, ports: [{port: 8081}]}
"""


def description(command: list[str] | None = None, image: str = "", replicas: int = 1) -> str:
    return DEPLOYMENT.format(replicas=replicas, image=image or IMAGE, command=json.dumps(command or SLEEP))


DESCRIPTIONS = {
    "Type/idle": description(replicas=0),
    "Type/sleeping": description(),
    "Type/crashing": description(["python3", "-c", CRASH]),
    "Type/no-image": description(image="no-such-image:test"),
    "Type/refused": description(replicas=0) + "---\n{apiVersion: v1, kind: Service, metadata: {name: Bad_Name}}\n",
    "Type/unknown-kind": description(replicas=0) + "---\n{apiVersion: v9, kind: Nothing, metadata: {name: a}}\n",
    "Type/broken": "a: [",
}


class Namespace:
    """A namespace, with the rights in it that ``etc/manager/rbac.yaml`` gives."""

    def __init__(self, folder: Path) -> None:
        self.name = f"m{secrets.token_hex(3)}"
        self.kubeconfig = folder / "kubeconfig"

    @contextmanager
    def there(self) -> Iterator[Namespace]:
        self.do(self._prepare)
        try:
            yield self
        finally:
            self.do(lambda api: kube.CoreV1Api(api).delete_namespace(self.name))

    def do(self, action: Callable[[Any], Awaitable[Any]]) -> Any:
        """What an administrator does, in a thread of its own: the test's loop may be running in this one."""
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(asyncio.run, self._as_administrator(action)).result()

    async def _as_administrator(self, action: Callable[[Any], Awaitable[Any]]) -> Any:
        configuration = type.__call__(kube.Configuration)
        await kube_config.load_kube_config(client_configuration=configuration)
        async with kube.ApiClient(configuration) as api:
            result = await action(api)
        await asyncio.sleep(0.1)  # older aiohttp leaves it to the loop to end connections (its "Graceful shutdown")
        return result

    async def _prepare(self, api: Any) -> None:
        core = kube.CoreV1Api(api)
        await core.create_namespace({"metadata": {"name": self.name}})
        for document in yaml.safe_load_all((ETC / "rbac.yaml").read_text()):
            await kube_utils.create_from_dict(api, document, namespace=self.name)
        token = await core.create_namespaced_service_account_token(
            "k8smgr", self.name, {"spec": {"expirationSeconds": 7200}}
        )
        write_kubeconfig(self.kubeconfig, token.status.token)

    def objects(self, of: str = "") -> list[str]:
        """What there is of services, as ``Kind name``; with ``of`` in the name."""

        async def look(api: Any) -> list[str]:
            core, apps = kube.CoreV1Api(api), kube.AppsV1Api(api)
            lists = [
                ("Deployment", apps.list_namespaced_deployment),
                ("Service", core.list_namespaced_service),
                ("ConfigMap", core.list_namespaced_config_map),
                ("Secret", core.list_namespaced_secret),
            ]
            found = []
            for kind, call in lists:
                items = (await call(self.name)).items
                found += [f"{kind} {item.metadata.name}" for item in items if not _is_the_clusters(item)]
            return sorted(name for name in found if of in name)

        return self.do(look)

    def get(self, kind: str, name: str) -> Any:
        """An object, as the API has it."""
        calls = {
            "Deployment": lambda api: kube.AppsV1Api(api).read_namespaced_deployment,
            "Service": lambda api: kube.CoreV1Api(api).read_namespaced_service,
            "ConfigMap": lambda api: kube.CoreV1Api(api).read_namespaced_config_map,
            "Secret": lambda api: kube.CoreV1Api(api).read_namespaced_secret,
        }

        async def look(api: Any) -> Any:
            return api.sanitize_for_serialization(await calls[kind](api)(name, self.name))

        return self.do(look)

    def secret(self, name: str) -> dict[str, str]:
        data = self.get("Secret", name)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}


def _is_the_clusters(item: Any) -> bool:
    return "token" in item.metadata.name or item.metadata.name == "kube-root-ca.crt"


class Manager:
    """A manager as an operator runs it, in a process of its own."""

    def __init__(self, folder: Path, namespace: Namespace, program: list[str] | None = None, **config: Any) -> None:
        self.folder = folder
        self.namespace = namespace
        self.program = program or ["-m", "jhlauncher"]
        self.port = free_port(SERVICES)
        self.url = f"http://127.0.0.1:{self.port}/api/"
        for name, text in DESCRIPTIONS.items():
            for credential in ("hub", "other"):
                self.describe(name, text, credential)
        self.describe("Type/idle", UPDATE, filename="update.yaml")
        self.config = folder / "config.json"
        self.configure(**config)
        self.arguments: list[str] = []
        self.environment = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(namespace.kubeconfig),
            "CONFIG_PATH": str(self.config),
            "DEPLOYMENT_NAMESPACE": namespace.name,
            "DEPLOYMENT_NAME": "k8smgr",
            "HUB_USER_TOKEN": TOKEN,
            **{f"{name.upper()}_USER_PASS": password for name, password in PASSWORDS.items()},
        }

    def configure(self, services: Any = None, **config: Any) -> None:
        """Write ``config.json``."""
        users = {name: ["access_to_webservice"] for name in ("hub", "other")}
        users |= {"logs": ["access_to_logging"], "none": [], "absent": ["access_to_webservice"]}
        users["hub"].append("access_to_logging")
        content = {
            "services": {
                "base": str(self.folder / "base"),
                "descriptions": str(self.folder / "descriptions"),
                **(services or {}),
            },
            "userhomes": {
                "base": str(self.folder / "homes"),
                "skel": str(self.folder / "skel"),
                "uid": os.getuid(),
                "gid": os.getgid(),
            },
            "startup": {"create_user": users},
            **config,
        }
        self.config.write_text(json.dumps(content))

    def describe(self, name: str, text: str, credential: str = "hub", filename: str = "service.yaml") -> None:
        folder = self.folder / "descriptions" / credential / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / filename).write_text(text)

    def begin(self, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "manager", "--ip=127.0.0.1", f"--port={self.port}", *self.arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while wait and not self._answers():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)  # it can't say when it listens

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}health/", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(60)

    @contextmanager
    def running(self) -> Iterator[Manager]:
        self.begin()
        try:
            yield self
        finally:
            if self.process.poll() is None:
                self.end()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    # -- requests

    def request(
        self, method: str, path: str = "services/", body: Any = None, user: str | None = "hub", **headers: str
    ) -> tuple[int, Any]:
        """Status and body of an answer."""
        if user:
            headers.setdefault("Authorization", basic(user))
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            headers.setdefault("Content_Type", "application/json")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"{self.url}{path}", data, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                self.headers = error.headers
                return error.code, _json(error.read())

    def start(
        self, name: str = "", service: str = "Type/idle", user: str = "hub", start_id: str = "", **more: Any
    ) -> tuple[int, Any]:
        """Start a service."""
        body = {**start_body(service, start_id or secrets.token_hex(4)), **more}
        return self.request("POST", body=body, user=user, uuidcode=name or new_name())

    def status(self, name: str, user: str = "hub") -> Any:
        status, body = self.request("GET", f"services/{name}/", user=user)
        assert status == 200, body
        return body

    def settled(self, name: str, until: Callable[[Any], bool], timeout: float = 60) -> Any:
        """The service's status once it is as it should be."""
        deadline = time.monotonic() + timeout
        while True:
            model = self.status(name)
            if until(model):
                return model
            assert time.monotonic() < deadline, (model, self.log())
            time.sleep(0.2)

    def until(self, condition: Callable[[], Any], timeout: float = 60) -> Any:
        """What the condition says once it says something; of what tells nobody."""
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)
        return found


def new_name() -> str:
    return f"s{secrets.token_hex(8)}"


def basic(user: str, password: str | None = None) -> str:
    secret = f"{user}:{PASSWORDS[user] if password is None else password}"
    return f"Basic {base64.b64encode(secret.encode()).decode()}"


def start_body(service: str = "Type/idle", start_id: str = "12345678") -> dict[str, Any]:
    return {
        "env": {"JUPYTERHUB_STATUS_URL": "", "JUPYTERHUB_API_TOKEN": "secret-of-the-server", "JUPYTERHUB_USER_ID": 17},
        "user_options": {"service": service},
        "start_id": start_id,
    }


def _json(text: bytes) -> Any:
    return json.loads(text) if text else None
