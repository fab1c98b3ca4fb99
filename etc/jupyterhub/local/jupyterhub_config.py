"""A JupyterHub with the launcher on one machine: servers are processes of the Hub's own user, for trusted people.

Start it, as an ordinary user, with two secrets of your own:

    export PLATFORM_TOKEN=$(openssl rand -hex 32) LOGIN_PASSWORD=$(openssl rand -hex 16)
    jupyterhub --config jupyterhub_config.py
"""

import os

from jhlauncher import install_launcher

c = get_config()

# the launcher: a service at /services/launcher/, its role, and the spawner; the Hub manages it, or it runs elsewhere
if "LAUNCHER_URL" in os.environ:
    install_launcher(c, engine="local", url=os.environ["LAUNCHER_URL"], api_token=os.environ["LAUNCHER_TOKEN"])
else:
    install_launcher(c, engine="local", images=["singleuser"])
if os.geteuid() == 0:
    c.Spawner.args = ["--allow-root"]  # Jupyter refuses to run as root otherwise
c.LauncherLocalSpawner.root_dir = os.path.abspath("servers")  # noqa: PTH100

# who may log in; people are also created through the launcher
c.JupyterHub.authenticator_class = "shared-password"  # every name with this password: replace it by your own
c.SharedPasswordAuthenticator.user_password = os.environ["LOGIN_PASSWORD"]
c.Authenticator.allow_all = True
c.JupyterHub.allow_named_servers = True

# HTTPS, where the proxy is to speak it
if "TLS_CERT" in os.environ:
    c.JupyterHub.bind_url = "https://:8443"
    c.JupyterHub.ssl_cert, c.JupyterHub.ssl_key = os.environ["TLS_CERT"], os.environ["TLS_KEY"]

# a platform that launches for everyone: send this token to /services/launcher/containers
c.JupyterHub.services = [{"name": "platform", "api_token": os.environ["PLATFORM_TOKEN"]}]
c.JupyterHub.load_roles = [
    {
        "name": "platform",
        "services": ["platform"],
        "scopes": ["access:services!service=launcher", "servers", "admin:users"],
    }
]
