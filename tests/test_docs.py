"""What the docs promise, against the code."""

from __future__ import annotations

import re
from pathlib import Path

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
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_commands_of_the_readme_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_settings_named_in_the_docs_exist():
    from jhlauncher.app import LauncherApp
    from jhlauncher.engines import ENGINES
    from jhlauncher.manager.app import ManagerApp
    from jhlauncher.spawner import LauncherSpawnerMixin

    spawners = [import_item(path) for path in ENGINES.values()]
    apps = (LauncherApp, ManagerApp)
    known = (*LauncherApp.classes, *ManagerApp.classes, *apps, *spawners, LauncherSpawnerMixin)
    classes = {cls.__name__: cls for cls in known}
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
