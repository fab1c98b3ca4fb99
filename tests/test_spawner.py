"""What the mixin does to spawner objects of several classes; that they start what it says is for the real ones."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dockerspawner import DockerSpawner
from jupyterhub.spawner import SimpleLocalProcessSpawner
from kubespawner import KubeSpawner
from tornado.web import HTTPError

from jhlauncher.engines.local import LauncherLocalSpawner
from jhlauncher.models import LaunchSpec
from jhlauncher.spawner import LauncherSpawnerMixin

HARD = {"JSON": '{"a": 1}', "BRACES": "{username.__class__}", "HALF": "}{"}


class Kube(LauncherSpawnerMixin, KubeSpawner):  # type: ignore[misc]
    pass


class Docker(LauncherSpawnerMixin, DockerSpawner):  # type: ignore[misc]
    pass


class Bare(LauncherSpawnerMixin, SimpleLocalProcessSpawner):  # type: ignore[misc]
    pass


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests are made without one."""
    monkeypatch.setattr("kubespawner.spawner.load_config", lambda **options: None)
    monkeypatch.setattr("kubespawner.spawner.shared_client", lambda *names: None)


def spec(**fields: Any) -> LaunchSpec:
    return LaunchSpec(**{"image": "image:1", **fields})


def user() -> Any:
    server = SimpleNamespace(base_url="/user/alice/")
    return SimpleNamespace(name="alice", escaped_name="alice", id=1, url="/user/alice/", server=server)


def kube(**traits: Any) -> Kube:
    return Kube(_mock=True, user=user(), orm_spawner=SimpleNamespace(name="", server=None), hub=_hub(), **traits)


def _hub() -> Any:
    return SimpleNamespace(base_url="/hub/", api_url="http://hub/hub/api", public_host="", url="http://hub/hub/")


def manifest(spawner: Kube) -> Any:
    return asyncio.run(spawner.get_pod_manifest()).spec


def given(objects: Any) -> Any:
    """The objects' fields that have a value."""
    return [_given(item.to_dict()) for item in objects]


def _given(value: Any) -> Any:
    return {k: _given(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def test_pod():
    own_volume = {"name": "own", "emptyDir": {}}
    spawner = kube(volumes=[own_volume], volume_mounts=[{"name": "own", "mountPath": "/own"}], environment={"OWN": "1"})
    configured = spawner.volumes
    volumes = [
        {"name": "data", "mount": "/data", "subpath": "a/{b}"},
        {"name": "data", "mount": "/again", "read_only": True},
    ]
    spawner.apply_launch(
        spec(
            volumes=volumes,
            cpu={"request": 0.5, "limit": 1},
            memory={"request": "512M", "limit": "1G"},
            gpu={"limit": 2},
            env=HARD,
        )
    )
    pod = manifest(spawner)
    container = pod.containers[0]
    assert container.image == "image:1"
    assert container.resources.limits == {"cpu": 1.0, "memory": 1024**3, "nvidia.com/gpu": "2"}
    assert container.resources.requests == {"cpu": 0.5, "memory": 512 * 1024**2, "nvidia.com/gpu": "2"}
    assert given(pod.volumes) == [
        {"name": "own", "empty_dir": {}},
        {"name": "launch-0", "persistent_volume_claim": {"claimName": "data", "readOnly": False}},
        {"name": "launch-1", "persistent_volume_claim": {"claimName": "data", "readOnly": True}},
        {"name": "launch-shm", "empty_dir": {"medium": "Memory"}},
    ]
    assert given(container.volume_mounts) == [
        {"name": "own", "mount_path": "/own"},
        {"name": "launch-0", "mount_path": "/data", "sub_path": "a/{b}", "read_only": False},
        {"name": "launch-1", "mount_path": "/again", "sub_path": "", "read_only": True},
        {"name": "launch-shm", "mount_path": "/dev/shm"},
    ]
    env = {variable.name: variable.value for variable in container.env}
    assert {name: env[name] for name in (*HARD, "OWN", "JUPYTERHUB_ALLOW_TOKEN_IN_URL")} == {
        **HARD,
        "OWN": "1",
        "JUPYTERHUB_ALLOW_TOKEN_IN_URL": "1",
    }
    assert configured == [own_volume], "the configuration's own list was changed"


def test_pod_with_dicts_in_its_configuration():
    spawner = kube(volumes={"own": {"name": "own"}}, volume_mounts={"own": {"name": "own", "mountPath": "/own"}})
    spawner.apply_launch(spec(volumes=[{"name": "data", "mount": "/data"}]))
    assert list(spawner.volumes) == list(spawner.volume_mounts) == ["own", "launch-0"]


def test_default_profile_does_not_undo_the_launch():
    """KubeSpawner applies profiles inside start, after everything else."""
    profile = {"display_name": "Big", "default": True, "kubespawner_override": {"image": "profile:1", "cpu_limit": 8}}
    spawner = kube(profile_list=[profile])
    spawner.apply_launch(spec(cpu={"limit": 1}))
    asyncio.run(spawner.load_user_options())
    assert (spawner.image, spawner.cpu_limit) == ("image:1", 1)


def test_docker_container():
    spawner = Docker(user=user(), hub=_hub(), mounts=[{"type": "bind", "source": "/srv", "target": "/srv"}])
    volumes = [{"name": "data", "mount": "/data"}, {"name": "data", "mount": "/{again}", "read_only": True}]
    spawner.apply_launch(spec(volumes=volumes, cpu={"limit": 1}, memory={"limit": "1G"}, env=HARD))
    assert (spawner.image, spawner.cpu_limit, spawner.mem_limit) == ("image:1", 1, 1024**3)
    assert [(mount["Source"], mount["Target"], mount["ReadOnly"]) for mount in spawner.mount_binds][1:] == [
        ("data", "/data", False),
        ("data", "/{again}", True),
    ]
    assert HARD.items() <= spawner.environment.items()


@pytest.mark.parametrize(
    ("spawner", "fields", "named"),
    [
        (Bare, {}, "image"),
        (Docker, {"gpu": {"limit": 1}}, "gpu"),
        (Docker, {"volumes": [{"name": "data", "mount": "/data", "subpath": "a"}]}, "volumes"),
    ],
)
def test_what_a_class_has_not_is_refused_by_name(spawner: type[Any], fields: dict[str, Any], named: str):
    with pytest.raises(HTTPError) as error:
        spawner(user=user(), hub=_hub()).apply_launch(spec(**fields))
    assert error.value.status_code == 400
    assert error.value.jupyterhub_message.startswith(f"{named}: ")  # type: ignore[attr-defined]


def test_token_in_url_can_be_turned_off():
    spawner = kube(allow_token_in_url=False)
    spawner.apply_launch(spec())
    assert "JUPYTERHUB_ALLOW_TOKEN_IN_URL" not in spawner.environment


def local(tmp_path: Path, server: str = "", **traits: Any) -> LauncherLocalSpawner:
    spawner = LauncherLocalSpawner(
        user=user(), hub=_hub(), root_dir=str(tmp_path), orm_spawner=SimpleNamespace(name=server, server=None), **traits
    )
    spawner._unlink_mounts()
    return spawner


def test_local_volumes_are_linked_and_unlinked(tmp_path: Path):
    spawner = local(tmp_path, environments={"image:1": {}})
    home = Path(spawner.home_dir)
    spawner.apply_launch(spec(volumes=[{"name": "data", "mount": "/home/jovyan/a/b", "subpath": "c"}]))
    (home / "a/b/file").write_text("kept")
    assert (tmp_path / "volumes/data/c/file").read_text() == "kept"
    # also after a crash, when nobody has called stop
    local(tmp_path)
    assert not (home / "a/b").exists()
    assert (tmp_path / "volumes/data/c/file").read_text() == "kept"


def test_local_mount_over_something_is_refused(tmp_path: Path):
    spawner = local(tmp_path, environments={"image:1": {}})
    (Path(spawner.home_dir) / "work").mkdir()
    with pytest.raises(HTTPError, match="400"):
        spawner.apply_launch(spec(volumes=[{"name": "data", "mount": "/home/jovyan/work"}]))
    assert (Path(spawner.home_dir) / "work").is_dir()


def test_local_limits_may_be_ignored(tmp_path: Path):
    spawner = local(tmp_path, environments={"image:1": {}}, ignored_fields=["cpu", "memory", "gpu"])
    spawner.apply_launch(spec(cpu={"limit": 1}, memory={"limit": "1G"}, gpu={"limit": 1}))


def test_local_mounts_inside_one_another_are_refused(tmp_path: Path):
    spawner = local(tmp_path, environments={"image:1": {}})
    volumes = [{"name": "a", "mount": "/home/jovyan/x"}, {"name": "b", "mount": "/home/jovyan/x/y"}]
    for order in (volumes, volumes[::-1]):
        with pytest.raises(HTTPError) as error:
            spawner.apply_launch(spec(volumes=order))
        assert "inside another" in error.value.jupyterhub_message  # type: ignore[attr-defined]
    assert list(Path(spawner.home_dir).iterdir()) == []


def test_local_server_named_default_has_a_home_of_its_own(tmp_path: Path):
    default, named = local(tmp_path), local(tmp_path, server="default")
    assert (default.name, named.name) == ("", "default")
    assert default.home_dir != named.home_dir
    assert default._links_file != named._links_file


def test_forged_options_are_not_marked_up(tmp_path: Path):
    """A plain start with the id of somebody's pending launch must not be taken for that launch."""
    spawner = local(tmp_path, signing_key="k" * 32)
    forged = {"launcher": {"id": "of a pending launch", "applied": True}}
    spawner.user_options = forged
    spawner._take_launch()
    spawner.add_poll_callback(lambda: None)
    assert spawner.user_options == forged
