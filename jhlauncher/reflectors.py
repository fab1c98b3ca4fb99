"""KubeSpawner's views of the cluster, one watch for all servers of a namespace, that tell when they change."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from kubespawner.reflector import ResourceReflector
from traitlets import validate

from .bell import Bell


class _Resources(dict[str, Any]):
    """What a reflector knows; rings at every change."""

    def __init__(self, values: dict[str, Any], ring: Callable[[], None]) -> None:
        super().__init__(values)
        self._ring = ring

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._ring()

    def pop(self, *args: Any) -> Any:
        value = super().pop(*args)
        self._ring()
        return value


@cache
def telling(reflector_class: type[ResourceReflector]) -> type[ResourceReflector]:
    """The class, with a ``bell`` that rings whenever ``resources`` change."""

    class TellingReflector(reflector_class):  # type: ignore[misc]
        def __init__(self, **kwargs: Any) -> None:
            self.bell = Bell()
            super().__init__(**kwargs)

        @validate("resources")
        def _telling_resources(self, proposal: Any) -> _Resources:
            self.bell.ring()
            return _Resources(proposal.value, lambda: self.bell.ring())

    return TellingReflector
