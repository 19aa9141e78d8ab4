"""Error handling of the command-line tools in this package."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ray_l4.errors import RayL4Error


def exit_status(work: Callable[[], object]) -> int:
    """Call ``work`` and return the exit status: 0, or that of a RayL4Error, whose message goes to standard error."""
    try:
        work()
    except RayL4Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
