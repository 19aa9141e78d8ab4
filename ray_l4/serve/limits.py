"""Limits of a service. Whatever goes beyond one is refused with a clear answer, and the service goes on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ray_l4.config.fields import Count, Strict

Seconds = Annotated[float, Field(gt=0, le=3600)]


class Limits(Strict):
    """Limits of a service; of each replica, if there are several."""

    body_bytes: Count = 2**20
    """Bytes of a request (413)."""
    prompt_tokens: Count = 8192
    """Tokens of a prompt, before a long context is cut to what the model has room for (400)."""
    new_tokens: Count = 4096
    """Tokens that may be asked for (400)."""
    per_minute: Count = 6000
    """Requests of a client in a minute (429). A client is an API key, or an address where no valid one is given."""
    queue: Count = 1024
    """Requests that wait for the model (503)."""
    batch: Count = 32
    """Requests that the model answers together."""
    request_seconds: Seconds = 120
    """For a request from its first byte to its last (504)."""
    connections: Count = 2000
    """Connections at a time (503)."""
    stop_seconds: Annotated[float, Field(gt=0, le=50)] = 20
    """For requests under way to finish when the service is stopped."""
