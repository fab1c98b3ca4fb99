"""``jhlauncher`` and ``python -m jhlauncher``: the service with its helpers, or a command for people."""

from __future__ import annotations

import sys

from .cli.names import COMMANDS


def main() -> None:
    """The command ``jhlauncher``."""
    if sys.argv[1:] and sys.argv[1] in COMMANDS:
        from .cli.commands import run  # each without the other's imports, which take a second

        sys.exit(run(sys.argv[1:]))
    from .app import main as serve

    serve()


if __name__ == "__main__":
    main()
