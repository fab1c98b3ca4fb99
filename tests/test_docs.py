"""What the docs promise, against the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from traitlets.utils.importstring import import_item

import jhlauncher
from jhlauncher import errors, install_launcher
from jhlauncher.models import LaunchRequest

REPOSITORY = Path(__file__).parent.parent
DOCS = {path.name: path.read_text() for path in (REPOSITORY / "docs").glob("*.md")}
SOURCE = "".join(path.read_text() for path in Path(jhlauncher.__file__).parent.rglob("*.py"))


def reasons_of_the_code() -> set[str]:
    named = set(re.findall(r'reason="(\w+)"', SOURCE)) | set(re.findall(r'reason = "(\w+)" if', SOURCE))
    tree = [errors.LauncherError]
    for error in tree:
        tree += error.__subclasses__()
    raised = {
        error.reason for error in tree if re.search(rf"\b{error.__name__}\(\s*(f?\"|title|$)", SOURCE, re.MULTILINE)
    }
    return named | {error.reason for error in tree} & raised | {"start_failed"}


def test_every_reason_is_documented():
    documented = set(re.findall(r"^\| `(\w+)` \|", DOCS["reasons.md"], re.MULTILINE))
    assert reasons_of_the_code() <= documented


def test_every_field_is_documented():
    for name in LaunchRequest.model_fields:
        assert f"| `{name}` |" in DOCS["http.md"], name


def test_every_argument_of_install_launcher_is_documented():
    for name in install_launcher.__annotations__.keys() - {"c", "return"}:
        assert f"`{name}`" in DOCS["install.md"], name


def test_links_lead_somewhere():
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")):
        text = re.sub(r"<!--.*?-->", "", path.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_commands_of_the_readme_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def configurables() -> list[Any]:
    """Every class that people configure."""
    from jhlauncher.app import LauncherApp
    from jhlauncher.authenticators import LauncherPAMAuthenticator, LauncherPasswordAuthenticator
    from jhlauncher.engines import ENGINES
    from jhlauncher.manager.app import ManagerApp
    from jhlauncher.spawner import LauncherSpawnerMixin

    spawners = [import_item(path) for path in ENGINES.values()]
    authenticators = [LauncherPasswordAuthenticator, LauncherPAMAuthenticator]
    services = [LauncherApp, *LauncherApp.classes, ManagerApp, *ManagerApp.classes]
    return [*services, LauncherSpawnerMixin, *spawners, *authenticators]


def test_settings_named_in_the_docs_exist():
    classes = {cls.__name__: cls for cls in configurables()}
    for name, trait in re.findall(rf"\b(?:c\.)?({'|'.join(classes)})\.(\w+)", "".join(DOCS.values())):
        assert trait in classes[name].class_trait_names(), f"{name}.{trait}"


def test_every_key_of_config_json_is_documented():
    from jhlauncher.manager.parts import CONFIGURABLE

    table = DOCS["manager.md"].partition("## config.json")[2].partition("## Logs")[0]
    for cls in CONFIGURABLE:
        for trait in cls.class_traits(config=True).values():
            key = trait.metadata.get("key", "")
            section, _, last = key.rpartition(".")
            assert not key or re.search(rf"`({re.escape(section)})?\.?{last}`", table), key


def test_every_fence_names_its_language():
    for name, text in DOCS.items():
        fences = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
        assert all(fences[::2]), name
        assert not any(fences[1::2]), name


@pytest.mark.parametrize(
    ("page", "file"),
    [
        ("howto-local.md", "jupyterhub/local"),
        ("howto-docker.md", "jupyterhub/docker"),
        ("howto-kubernetes.md", "kubernetes/hub"),
    ],
)
def test_the_recipe_is_the_configuration_in_etc(page: str, file: str):
    example = (REPOSITORY / "etc" / file / "jupyterhub_config.py").read_text()
    code = re.sub(r"  # noqa: \w+$", "", example.split('"""')[2].strip(), flags=re.MULTILINE)
    assert f"```python\n{code}\n```" in DOCS[page]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "doctrees")]
    built = subprocess.run([*command, "docs", str(folder)], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_setting_is_in_the_reference(site: Path):
    from jhlauncher.spawner import LauncherSpawnerMixin

    page = (site / "configuration.html").read_text()
    for cls in configurables():
        for name, trait in cls.class_traits(config=True).items():
            ours = trait.this_class.__module__.startswith("jhlauncher.")
            if issubclass(cls, LauncherSpawnerMixin):  # its own stand once
                ours = ours and (trait.this_class is LauncherSpawnerMixin) == (cls is LauncherSpawnerMixin)
            documented = f'id="{cls.__module__}.{cls.__name__}.{name}"' in page
            assert documented == ours, f"{cls.__name__}.{name}"


def test_every_operation_is_in_the_reference(site: Path):
    from jhlauncher.handlers.openapi import document
    from jhlauncher.userjobs.openapi import EXTENSION

    page = (site / "http-api.html").read_text()
    for path, operations in document("/", EXTENSION).get("paths").items():
        for method in operations:
            title = f"{method.upper()} {path.removeprefix('/').replace('{id}', 'ID').replace('{name}', 'NAME')}"
            assert f"<h2>{title}<a" in page, title
