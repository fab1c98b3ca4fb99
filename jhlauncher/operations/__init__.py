"""For those who run it: `jhlauncher check`, `jhlauncher orphans` and `jhlauncher volumes`."""
