"""``jhlauncher upgrade-db``: bring the database to the schema of this version."""

from __future__ import annotations

from .app import LauncherApp
from .database import Database


class UpgradeDatabase(LauncherApp):
    """Brings the launcher's database to the schema of this version.

    Stop all replicas and back the database up first; there is no way back.
    """

    name = "jhlauncher upgrade-db"
    description = __doc__ or ""
    subcommands = {}

    def prepare(self) -> None:
        """Find the database; nothing else of the service is needed."""
        self.database = Database(parent=self)
        self.database.validate_settings()

    def start(self) -> None:
        """Upgrade, and say from what to what."""
        before, after = self.database.upgrade()
        self.log.info("The database %s has version %s now (before: %s)", self.database.label, after, before or "empty")
