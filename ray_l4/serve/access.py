"""Who may use a service: whoever has a key, and of those without one, this machine alone."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from ray_l4.errors import ConfigError
from ray_l4.serve.problems import RequestError

_SHORTEST_KEY = 16


def read_keys(path: Path) -> frozenset[str]:
    """Return the API keys in a file, one on each line. Raises ConfigError if there are none, or others can read it."""
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--api-key-file {path}: cannot be read ({error}); expected one key on each line") from error
    if mode & 0o077:
        raise ConfigError(f"--api-key-file {path}: others can read it; make it yours alone: chmod 600 {path}")
    if not lines or min(map(len, lines)) < _SHORTEST_KEY or not "".join(lines).isascii():
        raise ConfigError(
            f"--api-key-file {path}: expected one key on each line, of {_SHORTEST_KEY} ASCII characters at least. Make "
            f"one: openssl rand -hex 32 > {path}"
        )
    return frozenset(lines)


def is_loopback(host: str) -> bool:
    """Return whether a host names this machine alone."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_other_sites(headers: Headers, open_to_all: bool) -> None:
    """Raise RequestError if a web page of another site sends the request, in the browser of somebody who may."""
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin is not None and _part(origin, "netloc") != host:
        raise RequestError(403, f"pages of {origin} may not use this service", "other_site")
    name = _part(f"//{host}", "hostname")
    if not open_to_all and host and not is_loopback(name):
        raise RequestError(403, f"this service is not {name}; ask for 127.0.0.1 or localhost", "other_host")


def _part(address: str, name: str) -> str:
    """Return a part of an address; empty if it has none, or is none."""
    try:
        return str(getattr(urlsplit(address), name) or "")
    except ValueError:
        return ""
