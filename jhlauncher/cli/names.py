"""The commands: a module so light that ``jhlauncher`` can ask it at each start whether it is one of these."""

from __future__ import annotations

COMMANDS = {
    "launch": "Start a server, and wait until it is ready.",
    "list": "List launches, the newest first.",
    "show": "Show one launch.",
    "events": "Follow what happens to a launch, until its end.",
    "extend": "Give servers more time, from now on.",
    "stop": "Cancel launches, or stop their servers.",
    "logs": "Print the log of a launch that failed.",
    "options": "Show what you may launch.",
    "batch": "Start a class, watch it, give it more time, stop it.",
    "users": "Give people accounts from a roster, list them, remove them.",
    "jobs": "Submit jobs to Slurm, watch and cancel them, reach what they serve.",
    "completion": "Print a script that completes these commands in a shell.",
}
"""What each does, in a line."""

NESTED = {
    "batch": {
        "start": "Start a server for each of many people, and wait until they are ready.",
        "list": "List your classes, the newest first.",
        "show": "Show what each person's server is doing.",
        "extend": "Give all servers of a class more time, from now on.",
        "stop": "Stop all servers of a class.",
    },
    "users": {
        "import": "Give the people of a roster accounts; safe to repeat.",
        "template": "Print a roster to fill in.",
        "list": "List people with accounts.",
        "remove": "Remove accounts, and stop their servers.",
    },
    "jobs": {
        "submit": "Submit a job; its script, or a command, runs on a system with Slurm.",
        "list": "List your jobs and forwards, the newest first.",
        "show": "Show one, with the end of its output.",
        "cancel": "Cancel jobs, end forwards, and forget them.",
        "forward": "Make a port of a node reachable here, and print its address.",
        "systems": "List where you have an account, and what a job may ask for there.",
    },
}
"""Those that have commands of their own: ``jhlauncher batch start``."""
