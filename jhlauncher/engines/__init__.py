"""One module per engine: what a launch spec means there, and what the engine can tell of a start.

Each is imported only where it is used, so that no engine needs the packages of another.
"""

ENGINES = {
    "local": "jhlauncher.engines.local.LauncherLocalSpawner",
    "docker": "jhlauncher.engines.docker.LauncherDockerSpawner",
    "swarm": "jhlauncher.engines.swarm.LauncherSwarmSpawner",
    "kubernetes": "jhlauncher.engines.kubernetes.LauncherKubeSpawner",
}
"""The spawner class of each engine."""

MIXINS = {
    "KubeSpawner": "jhlauncher.engines.kubernetes.KubernetesLaunch",
    "SwarmSpawner": "jhlauncher.engines.swarm.SwarmLaunch",
    "DockerSpawner": "jhlauncher.engines.docker.DockerLaunch",
}
"""What makes a descendant of a known spawner class understand launches; the first that fits."""
