"""Whether the systems for user jobs can be reached, as each account, and whether their Slurm says how jobs are."""

from __future__ import annotations

from collections.abc import AsyncIterator

from traitlets import TraitError
from traitlets.config import Configurable

from ..userjobs.errors import SystemUnavailable
from ..userjobs.gateway import Gateway
from ..userjobs.reaching import gateway_to, slurm_of
from ..userjobs.systems import System, Systems
from .findings import Finding, good, problem

_TIMEOUT = 15
_SET_UP = "See docs/userjobs.md, Systems; try it with ssh as the launcher's user."


async def of_systems(parent: Configurable) -> AsyncIterator[Finding]:
    """Everything that can be found out about the systems in a configuration."""
    try:
        systems = Systems(parent=parent).load()
    except TraitError as error:
        yield problem("systems", str(error), "Mend Systems.systems (docs/userjobs.md).")
        return
    for name, system in systems.items():
        gateway = gateway_to(name, system, _TIMEOUT)
        try:
            async for finding in _of_system(name, system, gateway):
                yield finding
        finally:
            if gateway:
                await gateway.close()


async def _of_system(name: str, system: System, gateway: Gateway | None) -> AsyncIterator[Finding]:
    check = f"system {name}"
    if gateway:
        for account in sorted(system.all_accounts):
            try:
                await gateway.run(account, ["true"])
            except SystemUnavailable as error:
                yield problem(check, f"As {account}: {error.message}", _SET_UP)
    slurm = slurm_of(system, gateway, _TIMEOUT)
    if slurm is None or system.query_account is None:
        yield good(check, "It has forwards, and no jobs.")
        return
    try:
        await slurm.jobs({system.query_account})
    except SystemUnavailable as error:
        remedy = f"Slurm must be 21.08 or later, and {system.query_account} be able to run squeue --json."
        yield problem(check, error.message, remedy)
    else:
        yield good(check, "Its Slurm says how jobs are.")
