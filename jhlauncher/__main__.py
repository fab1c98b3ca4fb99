"""``python -m jhlauncher``."""

from .app import main

main()
