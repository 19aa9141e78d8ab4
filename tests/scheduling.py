"""Distribution of tests over several test processes (pytest -n 2 --dist loadgroup): file by file.

One process gets all files with tests that start Ray, a browser or whole commands: there is one Ray at a time, and tests
that wait for other processes do not slow each other down. The groups of pytest-xdist itself would do, but version 3.8
does not see them in pytest 9.2.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

TOGETHER = "one at a time"
"""The group of the files with such tests."""

_SIGNS = re.compile(r"\bray_cluster\b|\bmark\.(ray|browser|end_to_end)\b")


@cache
def group_of(file: Path) -> str:
    """Return the group of a test file, read from its text, because only the test processes import it."""
    return TOGETHER if _SIGNS.search(file.read_text(encoding="utf-8")) else str(file)


class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Sends the tests of a group to one test process, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(self.config.rootpath / nodeid.partition("::")[0])
