"""Ask over HTTP for a container with run-time parameters, and JupyterHub starts it while you watch."""

from ._version import __version__
from .install import install_launcher

__all__ = ["__version__", "install_launcher"]
