"""What faults did: one record for each, and the outcome of the run that they befell."""

from __future__ import annotations

from dataclasses import dataclass, field

from analysis.faults.fault import Fault


@dataclass
class Record:
    """What one fault did."""

    fault: Fault
    recovery_seconds: float | None = None
    """From the fault until there was progress that had not been there before; None if that never came, or if the next
    fault was meant to come first."""
    progress: str = ""
    """What that progress was: a result on disk, the end of the command, or nothing."""
    steps_again: int = 0
    """Steps of one student that were on record before and were done again."""
    commands: int = 0
    """Commands that had to be typed."""
    exit_codes: list[int] = field(default_factory=list)
    """With which commands ended because of it."""
    notes: list[str] = field(default_factory=list)
    """What was not as it has to be."""

    @property
    def needless_commands(self) -> int:
        """Commands that were typed beyond those that the fault calls for."""
        return max(0, self.commands - self.fault.allowed_commands)


@dataclass
class Outcome:
    """What a run with all its faults came to."""

    subject: str
    records: list[Record]
    not_reached: list[Fault]
    differences: list[str]
    left: list[str]
    """Processes that outlived the last command by ten seconds."""
    seconds: float

    @property
    def complaints(self) -> list[str]:
        """Everything that is not as it has to be, one line each."""
        return [
            *self.differences,
            *(f"{record.fault}: {note}" for record in self.records for note in record.notes),
            *(f"{record.fault}: a command was typed" for record in self.records if record.needless_commands),
            *(f"left behind: {title}" for title in self.left),
        ]
