"""The K8s Manager: starts services from YAML descriptions on Kubernetes, for JupyterHubs elsewhere.

A Hub with ``jupyterhub-backendspawner`` asks for a service over HTTP; its description is rendered, checked and applied,
watched from then on, and removed when it is not wanted any more. The settings are traits, and keys of ``config.json``.
"""
