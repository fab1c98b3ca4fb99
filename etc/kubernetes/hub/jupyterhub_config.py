"""A JupyterHub with the launcher in a pod, whose servers are pods of the same namespace."""

import os

from jhlauncher import install_launcher

c = get_config()
image = os.environ.get("SINGLE_USER_IMAGE", "quay.io/jupyter/base-notebook")

# the launcher: a service at /services/launcher/, its role, and the spawner; the Hub manages it, or it runs elsewhere
if "LAUNCHER_URL" in os.environ:
    install_launcher(
        c,
        engine="kubernetes",
        url=os.environ["LAUNCHER_URL"],
        api_token=os.environ["LAUNCHER_TOKEN"],
        signing_key=os.environ.get("LAUNCHER_SIGNING_KEY"),  # derived from the token on both sides, if there is none
    )
else:
    install_launcher(c, engine="kubernetes", images=[image])
c.JupyterHub.hub_ip = "0.0.0.0"
c.JupyterHub.hub_connect_ip = "hub"  # a Service in front of the Hub's pod, by which the servers' pods reach it
c.JupyterHub.cleanup_servers = False  # servers go on while the Hub's pod is replaced
c.KubeSpawner.image = image  # of plain starts from the Hub's own page
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
