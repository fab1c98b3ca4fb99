"""etc/kubernetes/values.yaml: JupyterHub's Helm chart can't be had here, so what it is told is run as the chart does.

The chart (https://z2jh.jupyter.org, 4.x) sets the spawner class and its own services first, and runs ``extraConfig`` at
the end, with ``extraEnv`` in the environment.
"""

from __future__ import annotations

from typing import Any

import docker
import pytest
import yaml
from jupyterhub.app import JupyterHub
from traitlets.config import Config

from jhlauncher.signing import derive_key
from tests.deployments.support import ETC, needs, run
from tests.engines.hubs import hub_image

VALUES: dict[str, Any] = yaml.safe_load((ETC / "kubernetes/values.yaml").read_text())
TOKEN = "a token of more than thirty-two characters"


@pytest.mark.parametrize("key", ["", "a signing key of more than thirty-two characters"])
def test_what_the_hub_makes_of_it(monkeypatch: pytest.MonkeyPatch, key: str):
    hub = VALUES["hub"]
    secret = {"JUPYTERHUB_API_TOKEN": TOKEN, "JHLAUNCHER_SIGNING_KEY": key}
    for name, value in hub["extraEnv"].items():
        reference = value["valueFrom"]["secretKeyRef"]
        assert reference["name"] == "launcher"
        if secret[reference["key"]]:
            monkeypatch.setenv(name, secret[reference["key"]])
        else:
            assert reference["optional"]
    c = Config()
    c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
    c.JupyterHub.allow_named_servers = hub["allowNamedServers"]
    c.JupyterHub.services = [{"name": name, "api_token": "of the chart"} for name in hub["services"]]
    c.JupyterHub.load_roles = [{"name": name, **role} for name, role in hub["loadRoles"].items()]
    exec(compile(hub["extraConfig"]["launcher"], "extraConfig", "exec"), {"c": c, "get_config": lambda: c})
    app = JupyterHub(config=c)
    assert app.spawner_class.__name__ == "LauncherKubeSpawner"
    services = {service["name"]: service for service in app.services}
    assert services.keys() == {"platform", "launcher"}
    (service,) = (each for each in documents("launcher.yaml") if each["kind"] == "Service")
    where = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert (services["launcher"]["url"], services["launcher"]["api_token"]) == (where, TOKEN)
    assert services["launcher"]["info"]["jhlauncher"]["launches"]
    assert services["launcher"]["info"]["jhlauncher"]["named_servers"]
    assert c.LauncherSpawnerMixin.signing_key == (key or derive_key(TOKEN))
    assert {role["name"] for role in app.load_roles} == {"platform", "launcher", "user"}


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((ETC / "kubernetes" / name).read_text()))


@pytest.mark.skipif(bool(needs("docker")), reason=needs("docker"))
def test_the_image_has_what_the_chart_s_configuration_imports():
    """It has JupyterHub ask with pycurl, and the culler run."""
    modules = "tornado.curl_httpclient, kubernetes_asyncio, kubespawner, yaml, jupyterhub_idle_culler, oauthenticator"
    image = hub_image(docker.APIClient(**docker.utils.kwargs_from_env(), version="auto"))
    run("docker", "run", "--rm", image, "python3", "-c", f"import {modules}")


def test_the_network_policy_lets_the_chart_s_pods_in():
    """Labels as the chart's templates have them."""
    (policy,) = documents("network-policy.yaml")
    proxy = {"app": "jupyterhub", "component": "proxy", "release": "jupyterhub"}
    (ingress,) = policy["spec"]["ingress"]
    assert any(_selects(peer["podSelector"], proxy) for peer in ingress["from"])
    assert not any(_selects(peer["podSelector"], {"component": "singleuser-server"}) for peer in ingress["from"])


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items()
    expressions = selector.get("matchExpressions", [])
    return all(labels.get(key) == value for key, value in wanted) and all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"] for each in expressions
    )
