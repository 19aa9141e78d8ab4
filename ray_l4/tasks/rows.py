"""Examples as readers of raw files give them, and the count of records that cannot be used."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal, NotRequired, TypedDict

from ray_l4.errors import DataError

log = logging.getLogger(__name__)

Split = Literal["train", "dev", "test"]

SHOWN = 3
"""Number of bad records quoted in a message: enough to see what is wrong with the file."""


class Row(TypedDict):
    """One example as a reader of raw files yields it."""

    context: str
    question: str
    references: list[str]
    sample_id: str
    meta: NotRequired[str]
    where: NotRequired[str]
    """Position in the file, for messages; ``record <n>`` by default."""


@dataclass
class BadRecords:
    """Counter of unusable records that keeps the first few for the message and raises if there are too many."""

    source: str
    """The data that is read, for messages."""
    max_fraction: float
    """Largest tolerated fraction of all records (``DataConfig.max_bad_fraction``)."""
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, where: str, why: str) -> None:
        """Count one bad record: ``where`` is its position in the file, ``why`` the reason."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(f"{where}: {why}")

    def check(self, num_good: int) -> str:
        """Log and return a summary once all records are read; an empty string if none was bad.

        Args:
            num_good: number of usable records.

        Raises:
            DataError: the fraction of bad records exceeds ``max_fraction``.
        """
        if not self.count:
            return ""
        total = self.count + num_good
        quoted = "\n".join(f"  {line}" for line in self.first)
        if self.count > self.max_fraction * total:
            raise DataError(
                f"{self.source}: {self.count} of {total} records cannot be used; "
                f"data.max_bad_fraction allows {self.max_fraction:.2%}. The first ones:\n{quoted}\n"
                "Fix the data, or raise data.max_bad_fraction to drop these records."
            )
        summary = (
            f"{self.source}: dropped {self.count} of {total} records that cannot be used. The first ones:\n{quoted}"
        )
        log.warning("%s", summary)
        return summary
