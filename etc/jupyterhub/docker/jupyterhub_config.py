"""A JupyterHub with the launcher whose servers are containers of this machine's Docker Engine.

Start it as a user who may use Docker's socket, with two secrets of your own:

    export PLATFORM_TOKEN=$(openssl rand -hex 32) LOGIN_PASSWORD=$(openssl rand -hex 16)
    jupyterhub --config jupyterhub_config.py
"""

import os

from jhlauncher import install_launcher

c = get_config()
image = os.environ.get("SINGLE_USER_IMAGE", "quay.io/jupyter/base-notebook")

# the launcher: a service at /services/launcher/, its role, and the spawner; the Hub manages it, or it runs elsewhere
if "LAUNCHER_URL" in os.environ:
    install_launcher(c, engine="docker", url=os.environ["LAUNCHER_URL"], api_token=os.environ["LAUNCHER_TOKEN"])
else:
    install_launcher(c, engine="docker", images=[image])
c.JupyterHub.hub_ip = "0.0.0.0"
# where containers reach this host; in a container: its name on the network
c.JupyterHub.hub_connect_ip = os.environ.get("HUB_CONNECT_IP", "172.17.0.1")
c.DockerSpawner.network_name = os.environ.get("DOCKER_NETWORK", "bridge")
c.DockerSpawner.use_internal_ip = True  # the Hub reaches containers at their own addresses
c.DockerSpawner.image = image  # of plain starts from the Hub's own page
c.DockerSpawner.remove = True
c.Spawner.start_timeout = 300  # large images take long to be pulled for the first time

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
