"""The Secrets of a service: its environment, and its certificates. Pure but for what is configured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from traitlets import Bool, Dict, List, Unicode
from traitlets.config import LoggingConfigurable

from .rendering import Json

_LONGEST = 63
"""Characters of a name, so that it may be a label, too."""
CERTIFICATES = {
    "keyfile": "JUPYTERHUB_SSL_KEYFILE_DATA",
    "certfile": "JUPYTERHUB_SSL_CERTFILE_DATA",
    "cafile": "JUPYTERHUB_SSL_CLIENT_CA_DATA",
}
"""What a Hub sends, and what a service finds it under."""


class ServiceSecrets(LoggingConfigurable):
    """What a service gets of what its Hub has sent."""

    env = Dict(key_trait=Unicode(), help="Environment variables of all services; they go before the Hub's.").tag(
        config=True, key="services.env"
    )
    env_skip = List(
        Unicode(),
        default_value=["LC_ALL", "LANG", "PATH", "PYTHONPATH", "uuidcode"],
        help="Environment variables that services don't get.",
    ).tag(config=True, key="services.env_skip")
    ssl_enabled = Bool(
        True, help="Whether services get the certificates that a Hub sends, in a Secret of their own."
    ).tag(config=True, key="services.ssl.enabled")
    custom_headers_keys = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        default_value={"HTTP_ACCESS_TOKEN": "access-token", "HTTP_UUIDCODE": "uuidcode"},
        help="Request headers, as HTTP_NAME, that services get as environment variables, and the variables' names.",
    ).tag(config=True, key="custom_headers_keys")

    def variables(self, received: Mapping[str, str]) -> dict[str, str]:
        """What services get of a request's headers, by variable."""
        wanted = {key.removeprefix("HTTP_").replace("_", "-"): name for key, name in self.custom_headers_keys.items()}
        return {name: received[header] for header, name in wanted.items() if header in received}

    def render(
        self,
        name: str,
        certs_name: str,
        env: Json,
        variables: Mapping[str, str],
        certs: Mapping[str, str] | None,
        **more: str,
    ) -> list[Json]:
        """The Secrets.

        Args:
            name: of the one with the environment.
            certs_name: of the one with certificates.
            env: what the Hub has sent.
            variables: of the request's headers.
            certs: what the Hub has sent.
            more: variables that are the manager's own.

        """
        data = {**env, **variables, **self.env}
        texts = {key: _text(value) for key, value in data.items() if key not in self.env_skip}
        secrets = [_secret(name, {**texts, **more})]
        if certs and self.ssl_enabled:
            secrets.append(_secret(certs_name, {CERTIFICATES[key]: str(value) for key, value in certs.items()}))
        return secrets


def _text(value: Any) -> str:
    """A variable's value; nothing is nothing, not the word for it."""
    return "" if value is None else str(value)


def _secret(name: str, data: Mapping[str, str]) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "Opaque",
        "stringData": dict(data),
    }


def secret_name(prefix: str, id: str, deployment: str) -> str:
    """The name of a service's Secret; one that is too long is cut, but stays the service's own."""
    if len(prefix) + len(id) > _LONGEST:
        digest = hashlib.sha256(id.encode()).hexdigest()[:8]
        return f"{prefix}{id[: _LONGEST - len(prefix) - 9]}-{digest}"
    return f"{prefix}{id}-{deployment}"[:_LONGEST].rstrip("-._")
