"""How a system, and its Slurm, is reached: as its configuration says."""

from __future__ import annotations

from .commands import Commands
from .gateway import Gateway
from .jobs import Slurm
from .local import LocalGateway
from .slurmrestd import Rest
from .systems import System


def gateway_to(name: str, system: System, timeout: float) -> Gateway | None:
    """The way to a system; None if there is slurmrestd alone.

    Args:
        name: what the system is called.
        system: its configuration.
        timeout: seconds for a connection, and for a command.

    """
    if system.local:
        return LocalGateway(timeout)
    if system.ssh is None:
        return None
    from .ssh import SshGateway  # asyncssh is installed for those that need it

    return SshGateway(name, system.ssh, timeout)


def slurm_of(system: System, gateway: Gateway | None, timeout: float) -> Slurm | None:
    """A system's Slurm; None if there are no jobs."""
    if not system.query_account:
        return None
    if system.slurmrestd:
        return Rest(system.slurmrestd, system.query_account, timeout)
    return Commands(gateway, system.bin, system.query_account) if gateway else None
