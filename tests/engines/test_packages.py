"""What people install with pip is there again in the next launch, and in another image of the same Python."""

from __future__ import annotations

import asyncio
import base64
import io
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engines.conformance import EngineTests
from tests.engines.hubs import HUBS, EngineHub, build, missing
from tests.engines.inside import run

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]

INSTALL = """
import base64, pathlib, subprocess, sys, tempfile
wheel = pathlib.Path(tempfile.mkdtemp(), "kept-1.0-py3-none-any.whl")
wheel.write_bytes(base64.b64decode({wheel!r}))
pip = [sys.executable, "-m", "pip", "install", "--no-index", "--disable-pip-version-check", "--quiet", str(wheel)]
done = subprocess.run(pip, capture_output=True, text=True)
print(done.returncode, done.stderr)
"""
USE = """
import kept, os, pathlib, subprocess
script = pathlib.Path(kept.__file__).parents[3] / "bin/kept"
print(kept.WORD, subprocess.run([script], capture_output=True, text=True).stdout.strip(), os.environ.get({key!r}))
"""


def wheel() -> str:
    """A package with a module and a console script."""
    content = io.BytesIO()
    files = {
        "kept.py": "WORD = 'here'\ndef main():\n    print('runs')\n",
        "kept-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: kept\nVersion: 1.0\n",
        "kept-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "kept-1.0.dist-info/entry_points.txt": "[console_scripts]\nkept = kept:main\n",
    }
    files["kept-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in [*files, "kept-1.0.dist-info/RECORD"])
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return base64.b64encode(content.getvalue()).decode()


class Packages(EngineTests):
    """Images whose Python is a virtual environment, unless their name says that it is not."""

    first, second = "image", "other"
    python = "3.11"

    @pytest.fixture(scope="class")
    @classmethod
    def hub(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHub]:
        if missing(cls.engine):
            pytest.skip(missing(cls.engine))
        hub = HUBS[cls.engine](tmp_path_factory.mktemp(cls.engine))
        with (hub.folder / "jupyterhub_config.py").open("a") as config:
            config.write(f"c.LauncherSpawnerMixin.persist_packages = {{'*:site*': 'user', '*': {cls.python!r}}}\n")
        with hub.running():
            yield hub
            asyncio.run(cls._end(hub))

    async def test_stay(self, hub: Any):
        await self._stays(hub, "maker", hub.images[self.first], hub.images[self.second])

    async def _stays(self, hub: Any, user: str, first: str, second: str) -> None:
        vols = [] if self.engine == "local" else [{"pvc": hub.volume(user), "mount": hub.home}]
        launched = await self.launch(hub, user, image=first, vols=vols)
        assert (await run(launched, INSTALL.format(wheel=wheel()))).startswith("0")
        await hub.stop(user)
        key = "IMAGE" if self.engine == "local" else "WHICH_IMAGE"
        launched = await self.launch(hub, user, image=second, vols=vols)
        assert await run(launched, USE.format(key=key)) == "here runs other\n"
        await hub.stop(user)


class TestLocal(Packages):
    engine = "local"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"


class TestDocker(Packages):
    engine = "docker"

    async def test_of_a_python_that_takes_user(self, hub: Any):
        """One that knows the user's packages, as conda's does."""
        images = []
        for name in (self.first, self.second):
            image = f"jhlauncher-test:site-{name}"
            known = "sed -i 's/^\\(include-system-site-packages = \\).*/\\1true/' /opt/venv/pyvenv.cfg"
            lines = f"FROM {hub.images[name]}\nUSER root\nRUN {known}\nUSER jovyan\n"
            build(hub.docker, image, fileobj=io.BytesIO(lines.encode()))
            images.append(image)
        await self._stays(hub, "makersite", *images)

    async def test_nothing_is_set_without_a_volume_at_the_home(self, hub: Any):
        code = "import os; print(os.environ.get('PIP_PREFIX'), os.environ.get('PYTHONPATH'))"
        vols = [{"pvc": hub.volume("data"), "mount": f"{hub.home}/data"}]
        assert await run(await self.launch(hub, "makerplain", vols=vols), code) == "None None\n"


class TestSwarm(Packages):
    engine = "swarm"


class TestKubernetes(Packages):
    engine = "kubernetes"
    first, second = "root", "root-other"

    async def test_stay(self, hub: Any):
        hub.images["root-other"] = "jhlauncher-test:root-other"
        lines = f"FROM {hub.images['root']}\nENV WHICH_IMAGE=other\n"
        build(hub.docker, hub.images["root-other"], fileobj=io.BytesIO(lines.encode()))
        await super().test_stay(hub)
