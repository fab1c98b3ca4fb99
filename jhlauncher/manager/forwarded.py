"""Services of Kubernetes in front of what is forwarded for user jobs."""

from __future__ import annotations

from fnmatch import fnmatchcase

from ..errors import PolicyDenied, Temporary
from ..userjobs.errors import JobConflict
from ..userjobs.exposing import endpoints, service
from ..userjobs.forwards import Forwards
from ..userjobs.rows import UserJob
from .cluster import Cluster
from .errors import BadDescription, KubernetesRefused
from .rendering import Json, ref_of


class ClusterServices:
    """One Service for each user job with ports.

    In a pod, it selects the pods with the label ``name=<DEPLOYMENT_NAME>``, as the K8s Manager's own did. Elsewhere it
    has Endpoints with this machine's addresses.

    Args:
        cluster: where services are.
        forwards: which say at which addresses this process listens.

    """

    def __init__(self, cluster: Cluster, forwards: Forwards) -> None:
        self._cluster = cluster
        self._forwards = forwards

    async def add(self, job: UserJob) -> None:
        """Make a user job's Service."""
        if job.username and any(fnmatchcase(job.service, name) for name in self._cluster.reserved_names):
            raise PolicyDenied(f"A Service in the cluster may not be called {job.service}. Choose another name.")
        try:
            for item in self._objects(job):
                await self._cluster.create(item, job.key)
        except KubernetesRefused as error:
            if error.code == 409:
                raise JobConflict(f"There is a Service {job.service} already. Choose another name.") from error
            self._cluster.log.error("The Service of %s can't be made: %s", job, error.message)
            raise Temporary(f"The Service {job.service} can't be made now.") from error

    async def remove(self, job: UserJob) -> None:
        """Remove it."""
        try:
            await self._cluster.remove([ref_of(item) for item in self._objects(job)], job.key)
        except (KubernetesRefused, BadDescription) as error:
            raise Temporary(f"The Service {job.service} can't be removed now.") from error

    def addresses(self, job: UserJob) -> dict[str, str]:
        """The Service's name, and the port that was wanted."""
        host = f"{job.service}.{self._cluster.namespace}.svc"
        return {str(forward.wanted): f"{host}:{forward.wanted}" for forward in job.forwards}

    def _objects(self, job: UserJob) -> list[Json]:
        if not self._cluster.kubeconfig:
            return [service(job, {"name": self._cluster.deployment_name})]
        return [service(job, None), endpoints(job, self._forwards.ips)]
