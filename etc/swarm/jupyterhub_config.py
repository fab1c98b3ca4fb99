"""A JupyterHub with the launcher on a Docker Swarm, as stack.yaml starts it; compose.env has its settings.

Each server is a service, with a volume of its user's own that outlives it.
"""

import hmac
import os
from pathlib import Path

from docker.types import Mount
from jupyterhub.auth import Authenticator
from traitlets import Unicode

from jhlauncher import install_launcher

c = get_config()
SECRETS = Path("/run/secrets")
image = os.environ["SINGLE_USER_IMAGE"]


def secret(name):
    """What a Docker secret has in it."""
    return (SECRETS / name).read_text().strip()


# the launcher: a managed service at /services/launcher/, its role, and the spawner
install_launcher(
    c,
    engine="swarm",
    images=[image, os.environ["IMAGE_PREFIX"] + "*"],  # everything from the private registry
    signing_key=secret("signing_key"),
    idle_timeout=int(os.environ.get("IDLE_TIMEOUT") or 0) or None,
)
c.JupyterHub.hub_ip = "0.0.0.0"
c.JupyterHub.hub_connect_ip = os.environ["HUB_ADDRESS"]  # by which servers find the Hub on the network
c.JupyterHub.cleanup_servers = False  # servers go on while the Hub is replaced
c.JupyterHub.allow_named_servers = True
c.JupyterHub.db_url = "sqlite:////srv/jupyterhub/data/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = "/run/secrets/cookie_secret"
c.ConfigurableHTTPProxy.auth_token = secret("proxy_auth_token")
c.ConfigurableHTTPProxy.pid_file = "/tmp/jupyterhub-proxy.pid"
c.SwarmSpawner.network_name = os.environ["SERVERS_NETWORK"]
c.SwarmSpawner.image = image  # of plain starts from the Hub's own page
c.Spawner.start_timeout = 300  # large images take long to be pulled for the first time

# HTTPS
c.JupyterHub.bind_url = "https://:8443"
c.JupyterHub.ssl_key, c.JupyterHub.ssl_cert = "/run/secrets/tls_key", "/run/secrets/tls_cert"


def with_own_volume(spawner):
    """Mount the user's volume at the home; Docker makes it, with what the image has there, and never removes it."""
    volume = f"{os.environ['STACK']}-user-{spawner.escaped_name}"
    spawner.extra_container_spec = {"mounts": [Mount("/home/jovyan", volume, type="volume")]}


c.Spawner.pre_spawn_hook = with_own_volume


class UserList(Authenticator):
    """Users and passwords from a file with lines ``name:password``. For development only: they are in clear."""

    file = Unicode(help="The file.").tag(config=True)

    async def authenticate(self, handler, data):
        lines = Path(self.file).read_text(encoding="utf-8").splitlines()  # noqa: ASYNC240  (small, and in memory)
        users = dict(line.strip().split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
        known = users.get(data["username"], "")
        right = hmac.compare_digest(known.encode(), data["password"].encode())
        return data["username"] if known and right else None


def names(variable):
    """A list with commas, as a set."""
    return {name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()}


# who may log in; people are also created through the launcher
c.Authenticator.admin_users = names("AUTHENTICATOR_ADMIN_USERS")
if os.environ["AUTHENTICATOR_TYPE"] == "github":
    c.JupyterHub.authenticator_class = "github"
    # administrators, and these
    c.Authenticator.allow_all = names("AUTHENTICATOR_ALLOWED_USERS") == {"*"}
    c.Authenticator.allowed_users = names("AUTHENTICATOR_ALLOWED_USERS") - {"*"}
    c.GitHubOAuthenticator.allowed_organizations = names("OAUTH_ALLOWED_ORGANIZATIONS")
    c.GitHubOAuthenticator.scope = ["read:org"] if names("OAUTH_ALLOWED_ORGANIZATIONS") else []
    c.GitHubOAuthenticator.client_id = os.environ["OAUTH_CLIENT_ID"]
    c.GitHubOAuthenticator.client_secret = Path(os.environ["OAUTH_CLIENT_SECRET_FILE_PATH"]).read_text().strip()
    c.GitHubOAuthenticator.oauth_callback_url = os.environ["OAUTH_CALLBACK_URL"]
elif os.environ["AUTHENTICATOR_TYPE"] == "local":
    c.JupyterHub.authenticator_class = UserList
    c.UserList.file = "/run/secrets/user_list"
    c.Authenticator.allow_all = True  # whom it knows
else:
    raise ValueError(f"AUTHENTICATOR_TYPE is local or github, not {os.environ['AUTHENTICATOR_TYPE']!r}")

# a platform that launches for everyone, with the token in secrets/platform_token
c.JupyterHub.services = [{"name": "platform", "api_token": secret("platform_token")}]
c.JupyterHub.load_roles = [
    {
        "name": "platform",
        "services": ["platform"],
        "scopes": ["access:services!service=launcher", "servers", "admin:users"],
    }
]
