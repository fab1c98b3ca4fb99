"""For those who run it: `jhlauncher check` and `jhlauncher orphans`."""
