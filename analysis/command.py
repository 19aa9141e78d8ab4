"""What the commands of this folder share."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ray_l4.errors import RayL4Error


def exit_status(work: Callable[[], object]) -> int:
    """Do ``work``: 0, or for a mistake that a user can mend one line that says what is wrong, and its own status."""
    try:
        work()
    except RayL4Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
