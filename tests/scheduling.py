"""Distribution of tests over several test processes (pytest -n 2 --dist loadgroup): file by file, in groups.

All files that start Ray in the test's own process form one group, since a process has one Ray at a time and they share
it. Files that run commands form another: no more than two Rays compete for the machine, and the process from which
commands are forked loads its libraries once. A group goes to one test process. The groups of pytest-xdist itself would
do, but version 3.8 does not see them in pytest 9.2.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

RAY, COMMANDS = "Ray", "commands"
GROUP_OF_MARK = {"ray": RAY, "end_to_end": COMMANDS}
"""Tests with one of these marks run in a group."""

_SIGNS = {
    r"\bray_cluster\b": RAY,
    r"\bmark\.end_to_end\b": COMMANDS,
    r"\bmark\.ray\b": RAY,
    r"cli_fixtures import .*\bray_l4\b": COMMANDS,
}
"""What the group of a file is recognised by; the first that occurs counts."""


@cache
def group_of(file: Path) -> str:
    """Return the group of a test file, read from its text, because only the test processes import it."""
    text = file.read_text(encoding="utf-8")
    return next((group for sign, group in _SIGNS.items() if re.search(sign, text)), str(file))


class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Sends the tests of a group to one test process, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(self.config.rootpath / nodeid.partition("::")[0])
