"""Where users' servers find what is forwarded: at an address of this machine, or at a Service of Kubernetes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from .forwards import Forwards
from .rows import UserJob

Json = dict[str, Any]


class Exposure(Protocol):
    """Makes forwards known where users' servers are."""

    async def add(self, job: UserJob) -> None:
        """Make a name for a user job's ports.

        Raises:
            JobConflict: there is something of that name.
            PolicyDenied: users may not have that name.
            Temporary: it can't be made now.

        """

    async def remove(self, job: UserJob) -> None:
        """Take the name away; once more does no harm.

        Raises:
            Temporary: it can't be done now.

        """

    def addresses(self, job: UserJob) -> dict[str, str]:
        """``HOST:PORT`` for each port, by the one that was wanted."""


class Plain:
    """At an address of this machine, which needs no name."""

    def __init__(self, forwards: Forwards) -> None:
        self._forwards = forwards

    async def add(self, job: UserJob) -> None:
        """Nothing has to be done."""

    async def remove(self, job: UserJob) -> None:
        """Nothing was done."""

    def addresses(self, job: UserJob) -> dict[str, str]:
        """This machine's address, and the port."""
        host = self._forwards.address or self._forwards.ips[0]
        host = f"[{host}]" if ":" in host else host
        return {str(forward.wanted): f"{host}:{forward.local}" for forward in job.forwards}


def service(job: UserJob, selector: dict[str, str] | None) -> Json:
    """The Service in front of a user job's ports.

    Args:
        job: whose it is.
        selector: of the pod that this process is in; None: it is in none, and `endpoints` say where it is.

    """
    ports = [
        {"name": _port_name(forward.wanted), "port": forward.wanted, "targetPort": forward.local, "protocol": "TCP"}
        for forward in job.forwards
    ]
    spec = {"ports": ports, **({"selector": selector} if selector else {})}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": job.service}, "spec": spec}


def endpoints(job: UserJob, addresses: Iterable[str]) -> Json:
    """Where the Service leads, if this process is not in a pod of the cluster."""
    ports = [{"name": _port_name(forward.wanted), "port": forward.local, "protocol": "TCP"} for forward in job.forwards]
    subset = {"addresses": [{"ip": address} for address in addresses], "ports": ports}
    return {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": job.service}, "subsets": [subset]}


def _port_name(port: int) -> str:
    return f"p{port}"
