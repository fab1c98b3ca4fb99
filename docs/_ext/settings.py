"""``autosettings``: a configurable class with the settings that it has of this project, each with its help.

What a spawner inherits of KubeSpawner and its like is left out, and so is what all spawners of the launcher have,
which stands once at their mixin.
"""

from __future__ import annotations

from typing import Any

from autodoc_traits import ConfigurableDocumenter  # type: ignore[import-untyped]
from sphinx.application import Sphinx

from jhlauncher.spawner import LauncherSpawnerMixin


def own_settings(cls: type[Any]) -> list[str]:
    """The names of the settings to be shown with this class."""
    return [
        name
        for name, trait in cls.class_traits(config=True).items()
        if trait.this_class.__module__.startswith("jhlauncher.")
        and (cls is LauncherSpawnerMixin or trait.this_class is not LauncherSpawnerMixin)
    ]


class SettingsDocumenter(ConfigurableDocumenter):  # type: ignore[misc]
    """A class with its own settings."""

    objtype = "settings"
    priority = 0  # only where it is asked for

    def format_signature(self, **kwargs: Any) -> str:
        """None: people set traits, and make no objects."""
        return ""

    def get_object_members(self, want_all: bool) -> tuple[bool, list[Any]]:
        """Its own settings."""
        check, members = super().get_object_members(want_all)
        own = own_settings(self.object)
        return check, [member for member in members if member.__name__ in own]


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.setup_extension("autodoc_traits")
    app.add_autodocumenter(SettingsDocumenter)
    return {"parallel_read_safe": True}
