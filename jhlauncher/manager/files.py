"""Folders of an administrator's, in which callers name what they want: nothing leads out of them."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path


def below(root: Path, *names: str) -> Path | None:
    """The path of these names below a folder; None if one of them, or a link on the way, leads out of it."""
    parts = [part for name in names for part in name.split("/")]
    if not parts or any(part in ("", ".", "..") or "\0" in part for part in parts):
        return None
    path = root.joinpath(*parts)
    return path if is_inside(path, root) else None


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path is below a folder once all links are followed."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


def tree(root: Path, ignored: list[str], within: Path, folder: Path = Path()) -> Iterator[tuple[Path, Path]]:
    """All below a folder: the path below it, and where it is; folders before what is in them.

    Args:
        root: the folder.
        ignored: patterns of names that are left out, as of the shell.
        within: what links lead out of this folder is left out, too.
        folder: where to begin, below the root.

    """
    for path in sorted((root / folder).iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in ignored) or not is_inside(path, within):
            continue
        name = folder / path.name
        yield name, path
        if path.is_dir() and not is_inside(root / folder, path):  # a link to where it is in has no end
            yield from tree(root, ignored, within, name)
