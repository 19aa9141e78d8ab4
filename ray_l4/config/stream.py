"""The items of a stream: a task, the examples of it to learn, and the settings of the stage that learns them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ray_l4.config.fields import Count, HubName, SplitName, Strict
from ray_l4.config.text import check_name


class Columns(Strict):
    """Column names of your own data."""

    context: str = "context"
    """The text that the question refers to."""
    question: str = "question"
    """The question."""
    answer: str = "answer"
    """The expected answer, or a list of strings if several answers are correct."""
    id: str | None = None
    """Unique name of the example. If not given, the row number."""
    messages: str = "messages"
    """Chat data: conversations, each a list of messages with ``role`` and ``content``; the assistant's last one is
    the answer. ``conversations`` (messages with ``from`` and ``value``) is recognised too."""
    prompt: str = "prompt"
    """Chat data without ``messages``: the user's text, or a list of messages."""
    completion: str = "completion"
    """The answer to ``prompt``: a text, a list of right texts, or a list with the assistant's message."""
    references: str = "references"
    """Chat data: further right answers, if the file has such a column."""


class Splits(Strict):
    """Names of the splits of your own data: of its files or folders, or of a data set on the hub."""

    train: SplitName | None = None
    """Examples to learn. If not given, ``train``."""
    dev: SplitName | None = None
    """Examples that a run does not use. If not given, ``dev`` or ``validation``."""
    test: SplitName | None = None
    """Examples to be scored on. If not given, ``test``. Data without public answers may need ``validation`` here."""


class TrainingOfStage(Strict):
    """Training of one stage."""

    epochs: Count | None = None
    """``training.epochs`` of the stage."""
    batch_size: Count | Literal["auto"] | None = None
    """``training.batch_size`` of the stage."""


class OptimOfStage(Strict):
    """Optimiser of one stage."""

    lr: Annotated[float, Field(gt=0)] | None = None
    """``optim.lr`` of the stage, for all peers."""


class DistillationOfStage(Strict):
    """Distillation in one stage."""

    weight: Annotated[float, Field(ge=0)] | None = None
    """``distillation.weight`` of the stage."""


class ReplayOfStage(Strict):
    """Replay in one stage."""

    ratio: Annotated[float, Field(ge=0)] | None = None
    """``replay.ratio`` of the stage."""


class StageSettings(Strict):
    """Settings of one stage that differ from those of the experiment. Keys that are not given keep the common value."""

    training: TrainingOfStage = TrainingOfStage()
    """Training within the stage."""
    optim: OptimOfStage = OptimOfStage()
    """Learning rate."""
    distillation: DistillationOfStage = DistillationOfStage()
    """Distillation between peers."""
    replay: ReplayOfStage = ReplayOfStage()
    """Replayed examples of earlier tasks."""


class TaskConfig(Strict):
    """One item of the stream: a task, and the examples of it to learn. A plain name is short for ``{name: ...}``.

    A task may come back, with new examples (corrections, for example): it keeps its token and its test set, and all
    other tasks are replayed.
    """

    name: Annotated[str, AfterValidator(check_name)]
    """Name of a built-in task (``ray-l4 data list``), or any name for your own data: visible characters, without |."""
    train: Count | Literal["paper", "all"] = "paper"
    """Training examples: a number, ``paper`` for as many as the papers use, or ``all``."""
    test: Count | Literal["paper", "all"] = "paper"
    """Test examples: a number, ``paper`` or ``all``, as for ``train``."""
    path: Path | None = None
    """Folder of your own data: ``train.*`` and ``test.*`` (JSONL, CSV or Parquet), what the library datasets saved
    (``save_to_disk``), or the ``<name>_to_squad-<split>-v2.0.json`` files of the reference implementations. Relative to
    the experiment file."""
    dataset: HubName | None = None
    """Name of a data set of the Hugging Face Hub as your own data, instead of ``path``: ``OWNER/NAME``, or
    ``OWNER/NAME:SUBSET``. It is read from the hub's conversion to Parquet, downloaded once, and then cached."""
    splits: Splits = Splits()
    """Names of the splits of your own data."""
    columns: Columns = Columns()
    """Columns of your own data."""
    metric: str | None = None
    """Metric of the task (see ``ray-l4 data list``). Required for your own data; built-in tasks have a default."""
    question: str | None = None
    """The question of every example, if your own data has no question column."""
    settings: StageSettings = StageSettings()
    """Settings of the stage that learns this item, where they differ from those of the experiment."""

    @model_validator(mode="after")
    def _check_one_place(self) -> TaskConfig:
        if self.path is not None and self.dataset is not None:
            raise ValueError("give only one of 'path' and 'dataset'")
        return self

    @property
    def is_own(self) -> bool:
        """Return whether the examples are the user's own data."""
        return self.path is not None or self.dataset is not None


def completed(item: TaskConfig, first: TaskConfig) -> TaskConfig:
    """Return an item of the stream with what it has in common with the ``first`` one of its task."""
    if item is first:
        return item
    common = {"metric": first.metric, "question": first.question, "columns": first.columns}
    usual = {**common, "train": "all"} if item.is_own else common  # the papers' size is that of the first item
    return item.model_copy(update={key: value for key, value in usual.items() if key not in item.model_fields_set})
