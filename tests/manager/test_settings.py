"""``config.json`` and traits configure the same; unknown and wrong keys are named; credentials."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError
from traitlets.config import Config

from jhlauncher.database import Database
from jhlauncher.errors import Temporary, Unauthenticated
from jhlauncher.manager.app import ManagerApp
from jhlauncher.manager.credentials import Credentials
from jhlauncher.manager.parts import CONFIGURABLE, ManagerParts
from tests.engines.hubs import REPOSITORY

SEED = {
    "services": {
        "base": "/b", "descriptions": "/d", "yaml_filename": "s.yaml", "deployment_main_name_prefix": "d-",
        "container_main_name": "m", "input_dir": "in", "yaml_filename_update": "u.yaml",
        "descriptions_ignore_files": ["*.swp"], "skip": {"stage": ["a"], "credential": ["b"]},
        "credential_mapping": {"a": "b"}, "env": {"A": "1"}, "env_skip": ["B"],
        "pod_events_to_fail": ["Warning", "Normal"],
        "replace": {
            "input_keyword": "i", "indicators": ["{{", "}}"], "drfid_keyword": "d", "uniqueuserid_keyword": "u",
            "userid_keyword": "id", "secretname_keyword": "s", "secretcertsname_keyword": "c", "namespace_keyword": "n",
            "stage": {"s": {"a": "b"}}, "credential": {"c": {"a": "b"}}, "stage_credential": {"s": {"c": {"a": "b"}}},
        },
        "ssl": {"enabled": False},
        "status_information": {
            "pod_events_no": 4, "container_logs_lines": 6, "container_logs_join": "|", "pod_events_join": "|",
            "detailed_error_html_logs": "l", "detailed_error_html_events": "e",
        },
    },
    "userhomes": {
        "base": "/h", "skel": "/s", "uid": 1, "gid": 2, "credential_mapping": {"a": "b"},
        "service_suffix": {"a/b": "-x"}, "skel_ignore_files": ["x"],
    },
    "tunnel": [
        {"hostname": "h", "restart_url": "https://hub/x", "timeout": 5, "certificate_path": False,
         "cred_env_name": "X", "stage": {"s": {"restart_url": "https://hub/y"}}},
    ],
    "startup": {"create_user": {"jupyterhub": ["access_to_webservice", "access_to_logging"]}},
    "custom_headers_keys": {"HTTP_X": "x"},
    "error_messages": {"services.utils.common.start_service_2": "No."},
    "userjobs": {
        "systems": {"here": {"local": True}}, "ips": ["127.0.0.2"], "address": "here", "ports": "19000-19001",
        "interval": 5.0, "ended_retention": 60.0, "timeout": 5.0, "reserved_names": ["theirs-*"],
    },
}  # fmt: skip
"""Every key of the K8s Manager's, and those of user jobs."""


KNOWN = {
    trait.metadata["key"]
    for cls in CONFIGURABLE
    for trait in cls.class_traits(config=True).values()
    if "key" in trait.metadata
}


def loaded(tmp_path: Path, content: Any, **sections: dict[str, Any]) -> ManagerParts:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return parts(tmp_path, ConfigFile={"path": str(path)}, **sections)


def parts(tmp_path: Path, **sections: dict[str, Any]) -> ManagerParts:
    app = ManagerApp(config=Config({name: Config(values) for name, values in sections.items()}))
    database = Database(parent=app, url=f"sqlite:///{tmp_path}/x.sqlite")
    database.validate_settings()
    return ManagerParts(app, database)


def keys(content: Any, prefix: str = "") -> set[str]:
    if prefix in KNOWN:
        return {prefix}
    return {key for name, value in content.items() for key in keys(value, f"{prefix}.{name}".lstrip("."))}


def test_every_key_is_known_and_every_setting_with_a_key_is_tried(tmp_path: Path):
    before, after = (_values(loaded(tmp_path, content)) for content in ({}, SEED))
    assert keys(SEED) == KNOWN
    for key, value in after.items():
        wanted: Any = SEED
        for name in key.split("."):
            wanted = wanted[name]
        assert value == wanted
        assert value != before[key], key


def _values(parts: ManagerParts) -> dict[str, Any]:
    return {key: getattr(part, name) for key, (part, name) in parts._config._settings.items()}


def test_the_example_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUPYTERHUB_USER_PASS", "x")
    found = loaded(tmp_path, (REPOSITORY / "etc/manager/config.json").read_text())
    assert found.credentials.names == ["jupyterhub"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"service": {}}, "service is not a setting"),
        ({"services": {"bas": "x"}}, "services.bas is not a setting"),
        ({"services": {"replace": {"stag": {}}}}, "services.replace.stag is not a setting"),
        ({"services": []}, "services must be an object"),
        ({"services": {"base": 1}}, "services.base: .*expected a unicode string, not the int 1"),
        ({"services": {"replace": {"indicators": ["<"]}}}, "services.replace.indicators: "),
        ({"services": {"replace": {"indicators": ["<", ""]}}}, "neither may be empty"),
        ({"services": {"replace": {"stage": {"a": "b"}}}}, "services.replace.stage: "),
        ({"services": {"replace": {"stage_credential": {"a": {"b": "c"}}}}}, "services.replace.stage_credential"),
        ({"userhomes": {"uid": -1}}, "userhomes.uid: "),
        ({"tunnel": [{"host": "x"}]}, "tunnel.0.host: Extra inputs are not permitted"),
        ({"tunnel": [{"timeout": 0}]}, "tunnel.0.timeout"),
        ({"startup": {"create_user": {"a": ["admin"]}}}, "startup.create_user.a: there is no group 'admin'"),
        ("{", "can't be read"),
        ("[]", "must have a JSON object"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, content: Any, problem: str):
    with pytest.raises(TraitError, match=problem):
        loaded(tmp_path, content)


def test_traitlets_configuration_goes_before_the_file(tmp_path: Path):
    found = loaded(tmp_path, SEED, ServiceSecrets={"env": {"A": "2"}})
    assert found.secrets.env == {"A": "2"}
    assert found.secrets.env_skip == ["B"]


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(TraitError, match="can't be read"):
        parts(tmp_path, ConfigFile={"path": str(tmp_path / "missing")})


# -- credentials


def credentials(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Credentials:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = Credentials(create_user={"hub": ["access_to_webservice"], "hub-2": []})
    found.load()
    return found


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.asyncio
async def test_who_calls(monkeypatch: pytest.MonkeyPatch):
    found = credentials(monkeypatch, HUB_USER_PASS="p:ä", HUB_2_USER_TOKEN="t" * 16)
    for _ in range(2):
        assert (await found.identify(basic("hub:p:ä"))).credential == "hub"
    assert (await found.identify("Token " + "t" * 16)).credential == "hub-2"
    for wrong in (basic("hub:p"), basic("hub-2:"), basic("x:y"), "Token x", "Basic x", ""):
        with pytest.raises(Unauthenticated):
            await found.identify(wrong)


def test_nothing_is_kept_in_clear(monkeypatch: pytest.MonkeyPatch):
    found = credentials(monkeypatch, HUB_USER_PASS="a very good password", HUB_2_USER_TOKEN="a-very-good-token")
    assert "a very good password" not in repr(vars(found))
    assert "a-very-good-token" not in repr(vars(found))


def test_credentials_that_can_not_be_told_apart(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(TraitError, match="would share"):
        Credentials(create_user={"a-b": [], "a_b": []}).load()
    with pytest.raises(TraitError, match="have the same token"):
        credentials(monkeypatch, HUB_USER_TOKEN="t" * 16, HUB_2_USER_TOKEN="t" * 16)


@pytest.mark.asyncio
async def test_who_guesses_does_not_wait_in_a_line_without_end(monkeypatch: pytest.MonkeyPatch):
    found = credentials(monkeypatch, HUB_USER_PASS="right")
    await found.identify(basic("hub:right"))
    guesses = [asyncio.create_task(found.identify(basic(f"hub:{number}"))) for number in range(60)]
    await asyncio.sleep(0)
    assert (await found.identify(basic("hub:right"))).credential == "hub", "who is known does not wait"
    results = await asyncio.gather(*guesses, return_exceptions=True)
    assert {type(result) for result in results} == {Unauthenticated, Temporary}


@pytest.mark.parametrize("token", ["short", "with a space in the middle"])
def test_tokens_that_are_none(monkeypatch: pytest.MonkeyPatch, token: str):
    with pytest.raises(TraitError, match=r"\$HUB_USER_TOKEN must have"):
        credentials(monkeypatch, HUB_USER_TOKEN=token)
