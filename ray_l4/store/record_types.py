"""What the JSON files of a run directory hold: the types and bounds that their readers rely on.

Keys that no reader needs may be there, and keys that an early version did not know may be missing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from ray_l4.errors import DamagedError, RunDirectoryError

MOST = 1_000_000
"""Largest number of a stage, an epoch or a student; far more than any run has, and few enough to count to."""
_Number = Annotated[int, Field(ge=0, le=MOST)]
_Size = Annotated[int, Field(ge=0, le=2**63)]
_Percent = FiniteFloat | None


class Record(BaseModel):
    """A JSON file of a run directory."""

    model_config = ConfigDict(extra="allow", strict=True)


class Score(Record):
    """A score: all values of the task's metric, and the name of the one that stands for it."""

    task: str = ""
    headline: str
    values: dict[str, FiniteFloat]
    examples: _Size = 0
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST)] = 1
    reserved: Annotated[int, Field(ge=1, le=MOST)] = 1

    @model_validator(mode="after")
    def _check_headline(self) -> Score:
        if self.headline not in self.values:
            raise ValueError(f"holds no headline score: {self.headline!r} is not among its values")
        return self


class GeneralRecord(Record):
    """The perplexity of one model on the general text, and which text that is."""

    perplexity: FiniteFloat | None
    text: str
    tokens: _Size
    digest: str


class General(Record):
    """The perplexities of all students of a run on one general text."""

    text: str
    tokens: _Size
    digest: str
    perplexity: dict[str, list[FiniteFloat | None]]


class Validation(Record):
    """The validation losses of a stage, and the epoch that they chose. A loss may be infinite or NaN."""

    examples: _Size
    epoch: Annotated[int, Field(ge=1, le=MOST)]
    means: list[float]
    losses: dict[str, list[float]] = {}


class Parameters(Record):
    """The number of parameters of a student."""

    count: _Size
    adapters: bool


class Together(Record):
    """The scores of all students together: those of a summary, without the number of a student."""

    score_matrix: list[list[_Percent]]
    final: dict[str, _Percent]


class Summary(Record):
    """The result of a finished run."""

    name: str
    method: str
    variant: str | None = None
    stream: Annotated[list[str], Field(min_length=1)]
    stages: list[str] | None = None
    learned: list[Annotated[list[str], Field(min_length=1)]] | None = None
    peers: Annotated[int, Field(ge=1, le=MOST)]
    topology: str | list[Annotated[list[_Number], Field(min_length=2, max_length=2)]] = ""
    seed: int
    score_matrix: dict[str, list[list[_Percent]]]
    final: dict[str, dict[str, _Percent]]
    average_accuracy: dict[str, _Percent] = {}
    average_incremental_accuracy: dict[str, _Percent] = {}
    forgetting: dict[str, _Percent] = {}
    backward_transfer: dict[str, _Percent] = {}
    forgetting_over_epochs: dict[str, _Percent] = {}
    together: Together | None = None
    parameters: dict[int, Parameters] = {}
    validation: dict[int, Validation] = {}
    wall_seconds: FiniteFloat
    peak_memory_bytes: dict[str, FiniteFloat]
    exchange: dict[str, FiniteFloat]
    replay: dict[int, dict[str, _Size]]
    restarts: _Size = 0
    lost_students: dict[int, str] = {}
    general: General | None = None
    general_perplexity: dict[str, FiniteFloat | None] = {}

    @model_validator(mode="after")
    def _check_shapes(self) -> Summary:
        rows = len(self.stages or self.stream)
        if self.learned is not None and (
            len(self.learned) != rows or not {task for own in self.learned for task in own} <= set(self.stream)
        ):
            raise ValueError(f"learned does not name tasks of the stream for each of {rows} stages")
        for student in map(str, range(self.peers)):
            matrix, final = self.score_matrix.get(student), self.final.get(student)
            if matrix is None or [len(row) for row in matrix] != [len(self.stream)] * rows:
                raise ValueError(f"score_matrix of student {student} is not {rows} stages by {len(self.stream)} tasks")
            if final is None or not set(self.stream) <= set(final):
                raise ValueError(f"final scores of student {student} are not those of the stream")
        for student, course in self.general.perplexity.items() if self.general else ():
            if len(course) != 1 + rows:
                raise ValueError(f"general of student {student} is not one value before {rows} stages and after each")
        if self.together is not None and (
            [len(row) for row in self.together.score_matrix] != [len(self.stream)] * rows
            or not set(self.stream) <= set(self.together.final)
        ):
            raise ValueError(f"together: does not hold the scores of {rows} stages and {len(self.stream)} tasks")
        for key, stages, most in (
            ("replay", self.replay, rows),
            ("validation", self.validation, rows),
        ):
            unknown = next((stage for stage in stages if not 0 <= stage < most), None)
            if unknown is not None:
                raise ValueError(f"{key} names stage {unknown}, and there are {most}")
        if isinstance(self.topology, list) and any(peer >= self.peers for pair in self.topology for peer in pair):
            raise ValueError(f"topology names a peer that is none of the {self.peers}")
        return self


class TrainingWarning(Record):
    """A warning of the training of a student."""

    kind: str
    stage: _Number
    student: _Number
    step: _Number
    message: str


class TrainingWarnings(Record):
    """All warnings of the training of a run."""

    warnings: list[TrainingWarning]


class Manifest(Record):
    """How a run began, as far as reports and checks read it."""

    command: str | None = None
    started: str | None = None
    platform: str | None = None
    scale: Annotated[FiniteFloat, Field(gt=0)] | None = None
    training_examples: dict[str, _Size] = {}
    test_examples: dict[str, _Size] = {}
    longest_sequences: dict[str, Annotated[int, Field(ge=0, le=MOST)]] = {}
    mirror: str | None = None


def parsed(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run. Raises DamagedError if it is missing or none."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also of a number with too many digits
        lost = not isinstance(error, OSError) or isinstance(error, FileNotFoundError | IsADirectoryError)
        kind = DamagedError if lost else RunDirectoryError  # the storage may answer again
        raise kind(f"{path}: cannot be read as JSON ({_cause(error)}); restore it from a copy") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path}: damaged: expected a JSON object, found {type(value).__name__}. Restore it.")
    return value


def check_record(path: Path, value: dict[str, Any], model: type[Record]) -> None:
    """Raise DamagedError if ``value``, read from ``path``, does not have the types of ``model``."""
    try:
        model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        missing = [".".join(map(str, each["loc"])) for each in problems if each["type"] == "missing"]
        what = f"it has {', '.join(f'no {key!r}' for key in missing)}" if missing else _what(problems[0])
        raise DamagedError(
            f"{path}: damaged, or written by another version: {what}. Restore it from a copy."
        ) from error


def _what(problem: Any) -> str:
    where = ".".join(map(str, problem["loc"]))
    what = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else str(problem["msg"])
    return f"{where}: {what}" if where else what


def _cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
