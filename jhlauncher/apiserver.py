"""What Kubernetes' API server says when it refuses something."""

from __future__ import annotations

import json
from typing import Any


def words_of(body: Any, reason: str | None) -> str:
    """Its own words, from the body of its answer (a ``Status`` of meta/v1), or else HTTP's reason."""
    try:
        return str(json.loads(body)["message"])
    except (TypeError, ValueError, LookupError):
        return str(reason or "refused")
