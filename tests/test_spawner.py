"""What the mixin does to spawner objects; that they start what it says is for the real ones."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub import orm
from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets import Unicode

from jhlauncher.engines.docker import LauncherDockerSpawner
from jhlauncher.engines.local import LauncherLocalSpawner
from jhlauncher.engines.swarm import LauncherSwarmSpawner
from jhlauncher.failures import StartFailed
from jhlauncher.models import LaunchSpec
from jhlauncher.signing import Signer
from jhlauncher.spawner import LauncherSpawnerMixin


class Bare(LauncherSpawnerMixin, SimpleLocalProcessSpawner):  # type: ignore[misc]
    """A class of which the mixin knows nothing."""


class WithImage(Bare):
    image = Unicode("default").tag(config=True)


def spec(**fields: Any) -> LaunchSpec:
    return LaunchSpec(**{"image": "image:1", **fields})


def user() -> Any:
    server = SimpleNamespace(base_url="/user/alice/")
    return SimpleNamespace(
        name="alice", escaped_name="alice", id=1, url="/user/alice/", server=server, settings={"public_url": None}
    )


def hub() -> Any:
    return SimpleNamespace(base_url="/hub/", api_url="http://hub/hub/api", public_host="", url="http://hub/hub/")


def apply(spawner: LauncherSpawnerMixin, launch: LaunchSpec) -> None:
    asyncio.run(spawner.apply_launch(launch))


@pytest.mark.parametrize(
    ("spawner", "fields", "named"),
    [
        (Bare, {}, "image"),
        (WithImage, {"gpu": {"limit": 1}}, "gpu"),
        (WithImage, {"volumes": [{"name": "data", "mount": "/data"}]}, "volumes"),
        (WithImage, {"pull_policy": "Always"}, "pull_policy"),
    ],
)
def test_what_a_class_has_not_is_refused_by_name(spawner: type[Any], fields: dict[str, Any], named: str):
    with pytest.raises(StartFailed) as error:
        apply(spawner(user=user(), hub=hub()), spec(**fields))
    assert error.value.failure.refused
    assert error.value.failure.message.startswith(named)


def test_what_any_class_has_is_applied():
    spawner = WithImage(user=user(), hub=hub(), environment={"OWN": "1"})
    apply(spawner, spec(cpu={"request": 0.5, "limit": 1}, memory={"limit": "1G"}, env={"A": "{b}"}))
    assert (spawner.image, spawner.cpu_guarantee, spawner.cpu_limit, spawner.mem_limit) == ("image:1", 0.5, 1, 1024**3)
    assert spawner.environment == {"OWN": "1", "A": "{b}", "JUPYTERHUB_ALLOW_TOKEN_IN_URL": "1"}


def test_token_in_url_can_be_turned_off():
    spawner = WithImage(user=user(), hub=hub(), allow_token_in_url=False)
    apply(spawner, spec())
    assert "JUPYTERHUB_ALLOW_TOKEN_IN_URL" not in spawner.environment


def test_a_failed_spawner_that_is_started_again_is_as_it_was_configured():
    """The Hub does so when somebody tries again on its pages."""
    spawner = WithImage(user=user(), hub=hub(), environment={"OWN": "1"}, start_timeout=7)
    asyncio.run(spawner.run_auth_state_hook(None))
    asyncio.run(spawner.run_pre_spawn_hook())
    assert spawner.start_timeout > 7
    apply(spawner, spec(env={"SECRET": "x"}))
    spawner._steps.end()
    asyncio.run(spawner.run_auth_state_hook(None))
    assert (spawner.image, spawner.environment, spawner.start_timeout) == ("default", {"OWN": "1"}, 7)
    assert spawner._spec is None


class Unhurried:
    """A Docker Engine whose container takes its time to stop: until somebody else has been served."""

    def __init__(self) -> None:
        self.served = threading.Event()

    def stop(self, name: str) -> bool:
        return self.served.wait(20)

    def inspect_container(self, name: str) -> None:
        self.served.set()


@pytest.mark.parametrize("spawner_class", [LauncherDockerSpawner, LauncherSwarmSpawner])
def test_who_starts_does_not_wait_for_those_who_stop(monkeypatch: pytest.MonkeyPatch, spawner_class: Any):
    monkeypatch.setattr(spawner_class, "_client", Unhurried())
    stopping, starting = spawner_class(user=user(), hub=hub()), spawner_class(user=user(), hub=hub())

    async def both() -> list[Any]:
        return await asyncio.gather(stopping.docker("stop", "one"), starting.docker("inspect_container", "other"))

    assert asyncio.run(both()) == [True, None]


def local(tmp_path: Path, server: str = "", **traits: Any) -> LauncherLocalSpawner:
    kept = orm.Spawner(name=server, started=datetime(2026, 1, 1))
    spawner = LauncherLocalSpawner(user=user(), hub=hub(), root_dir=str(tmp_path), orm_spawner=kept, **traits)
    spawner._unlink_mounts()
    return spawner


def test_local_volumes_are_linked_and_unlinked(tmp_path: Path):
    spawner = local(tmp_path, environments={"image:1": {}})
    home = Path(spawner.home_dir)
    apply(spawner, spec(volumes=[{"name": "data", "mount": "/home/jovyan/a/b", "subpath": "c"}]))
    (home / "a/b/file").write_text("kept")
    assert (tmp_path / "volumes/data/c/file").read_text() == "kept"
    # also after a crash, when nobody has called stop
    local(tmp_path)
    assert not (home / "a/b").exists()
    assert (tmp_path / "volumes/data/c/file").read_text() == "kept"


def test_local_mount_over_something_is_refused(tmp_path: Path):
    spawner = local(tmp_path, environments={"image:1": {}})
    (Path(spawner.home_dir) / "work").mkdir()
    with pytest.raises(StartFailed):
        apply(spawner, spec(volumes=[{"name": "data", "mount": "/home/jovyan/work"}]))
    assert (Path(spawner.home_dir) / "work").is_dir()


def test_local_limits_may_be_ignored(tmp_path: Path):
    spawner = local(tmp_path, environments={"image:1": {}}, ignored_fields=["cpu", "memory", "gpu"])
    apply(spawner, spec(cpu={"limit": 1}, memory={"limit": "1G"}, gpu={"limit": 1}))


def test_local_mounts_inside_one_another_are_refused(tmp_path: Path):
    spawner = local(tmp_path, environments={"image:1": {}})
    volumes = [{"name": "a", "mount": "/home/jovyan/x"}, {"name": "b", "mount": "/home/jovyan/x/y"}]
    for order in (volumes, volumes[::-1]):
        with pytest.raises(StartFailed) as error:
            apply(spawner, spec(volumes=order))
        assert "inside another" in error.value.failure.message
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


def test_launch_is_known_again_after_a_restart_of_the_hub(tmp_path: Path):
    key = "k" * 32
    before = local(tmp_path, signing_key=key)
    launch = LaunchSpec(image="image:1")
    before.user_options = {"launcher": Signer(key).sign("id1", "alice", "", launch)}
    before._take_launch()
    after = local(tmp_path, signing_key=key)
    after.user_options = before.user_options
    after.add_poll_callback(lambda: None)
    assert after.user_options["launcher"]["up"] == Signer(key).mark("id1", "alice", "")
    # what proves it is good for that one start
    replayed = local(tmp_path, signing_key=key)
    replayed.orm_spawner.started = datetime(2026, 1, 2)
    replayed.user_options = before.user_options
    replayed.add_poll_callback(lambda: None)
    assert "up" not in replayed.user_options["launcher"]
