"""The Hub of compose.yaml: that of etc/jupyterhub/docker, with its proxy and PostgreSQL in containers of their own."""

import os

c = get_config()
load_subconfig("/etc/jupyterhub/jupyterhub_config.py")

c.JupyterHub.hub_connect_ip = "hub"
c.JupyterHub.db_url = os.environ["HUB_DB_URL"]
c.JupyterHub.cookie_secret = bytes.fromhex(os.environ["JUPYTERHUB_COOKIE_SECRET"])
c.JupyterHub.cleanup_servers = False  # servers go on while the Hub is replaced
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = "http://proxy-api:8001"
