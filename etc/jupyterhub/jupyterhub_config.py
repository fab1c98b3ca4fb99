"""A JupyterHub with the launcher on one machine: servers are processes of the Hub's own user, for trusted people.

Start it with: jupyterhub --config jupyterhub_config.py
"""

import os

from jhlauncher import install_launcher

c = get_config()  # noqa: F821

# the launcher: a managed service at /services/launcher/, its role, and the spawner
install_launcher(c, engine="local", images=["singleuser"])
c.LauncherLocalSpawner.root_dir = os.path.abspath("servers")  # noqa: PTH100

# who may log in; people are also created through the launcher
c.JupyterHub.authenticator_class = "dummy"  # every name with this password: replace it by your own
c.DummyAuthenticator.password = os.environ["DEMO_PASSWORD"]
c.Authenticator.allow_all = True
c.JupyterHub.allow_named_servers = True

# a platform that launches for everyone: send this token to /services/launcher/containers
c.JupyterHub.services = [{"name": "platform", "api_token": os.environ["PLATFORM_TOKEN"]}]
c.JupyterHub.load_roles = [
    {
        "name": "platform",
        "services": ["platform"],
        "scopes": ["access:services!service=launcher", "servers", "admin:users"],
    }
]
