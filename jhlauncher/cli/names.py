"""The commands: a module so light that ``jhlauncher`` can ask it at each start whether it is one of these."""

from __future__ import annotations

COMMANDS = {
    "launch": "Start a server, and wait until it is ready.",
    "list": "List launches, the newest first.",
    "show": "Show one launch.",
    "events": "Follow what happens to a launch, until its end.",
    "stop": "Cancel launches, or stop their servers.",
    "logs": "Print the log of a launch that failed.",
    "options": "Show what you may launch.",
    "completion": "Print a script that completes these commands in a shell.",
}
"""What each does, in a line."""

NESTED: dict[str, dict[str, str]] = {}
"""Those that have commands of their own; they stand in `COMMANDS`, too."""
