"""Ask the job server of a Ray cluster, for job.sh. The token is found where Ray finds it.

usage: job_client.py check ADDRESS            exit with 6 and a message unless the server answers and takes the token
       job_client.py exit-code ADDRESS JOB    print the exit code of a job's command; nothing if it has none
"""

from __future__ import annotations

import json
import os
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

CLUSTER_ERROR = 6
"""Exit code of ray-l4 for a cluster that cannot be used."""

TIMEOUT = 20.0
"""Seconds for the server to answer."""


REMEDY = (
    "Set RAY_API_SERVER_ADDRESS to the dashboard's address (http://HOST:8265), or open a tunnel to it first: "
    "ssh -N -L 8265:127.0.0.1:8265 HEAD"
)


def check(address: str) -> None:
    """Exit with a message unless a Ray dashboard answers at ``address`` and takes the token."""
    try:
        jobs = ask(address, "/api/jobs/")
    except HTTPError as error:
        if error.code in (401, 403):
            refuse(
                f"the cluster at {address} does not take this token. Print the right one on its head node (ray "
                "get-auth-token), save it in a file that only you can read, and set RAY_AUTH_TOKEN_PATH to that file."
            )
        refuse(f"{address} answers with status {error.code}, so it is not the dashboard of a Ray cluster. {REMEDY}")
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        refuse(f"no Ray dashboard answers at {address} ({reason}). {REMEDY}")
    except ValueError as error:  # the address is none, or the answer is not JSON
        refuse(f"{address} is not the dashboard of a Ray cluster ({error}). {REMEDY}")
    if not isinstance(jobs, list):
        refuse(f"{address} is not the dashboard of a Ray cluster. {REMEDY}")


def exit_code(address: str, job: str) -> None:
    """Print the exit code of a job's command; nothing if it never ran or cannot be asked for."""
    try:
        code = ask(address, f"/api/jobs/{job}").get("driver_exit_code")
    except (OSError, HTTPException, ValueError):
        code = None
    print("" if code is None else code)


def ask(address: str, path: str) -> Any:
    """Return the JSON with which the server answers a request. Raises OSError, HTTPException or ValueError."""
    headers = {"Authorization": f"Bearer {token()}"}
    with urlopen(Request(address.rstrip("/") + path, headers=headers), timeout=TIMEOUT) as answer:
        return json.loads(answer.read())


def token() -> str:
    """Return the token that Ray would send; exit with a message if it cannot be read or is none."""
    text = os.environ.get("RAY_AUTH_TOKEN", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    source = "RAY_AUTH_TOKEN" if text else str(path)
    try:
        found = text.strip() or path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        refuse(f"{source}: the token cannot be read ({error})")
    if not found or not found.isprintable() or " " in found:
        refuse(f"{source}: is not a token. Save there what ray get-auth-token prints on the head node.")
    return found


def refuse(message: str) -> NoReturn:
    """Exit with a message."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(CLUSTER_ERROR)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["check", address]:
            check(address)
        case ["exit-code", address, job]:
            exit_code(address, job)
        case _:
            raise SystemExit(__doc__)
