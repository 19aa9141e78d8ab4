"""Which training examples can be shown before the questions of a stage: those of the items learned up to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.methods import get_method, stages_of
from ray_l4.setup.begun import kept_memory
from ray_l4.store.checkpoints import Checkpoint
from ray_l4.text.memory import TextMemory


def remembered_items(experiment: ExperimentConfig, stage: int) -> list[str]:
    """Return the items of the stream whose training examples a stage can be shown, and its checkpoints in answering.

    They are those of its own and of all earlier stages; models that are trained on one task each have that one's alone,
    and one of several peers has all.
    """
    kind, stages = get_method(experiment.method).kind, stages_of(experiment)
    if kind.only_last:
        return list(experiment.items)
    known = stages[stage : stage + 1] if kind.independent else stages[: stage + 1]
    return [item for own in known for item in own.items]


class StageMemories:
    """The memories of all stages of a run; each is indexed once."""

    def __init__(self, experiment: ExperimentConfig, texts: Mapping[str, pa.Table]) -> None:
        """``texts``: item -> its ``REMEMBERED`` table."""
        self._experiment = experiment
        self._texts = texts
        self._memories: dict[int, TextMemory] = {}
        self._stage_of = {item: number for number, own in enumerate(stages_of(experiment)) for item in own.items}

    def of_stage(self, stage: int) -> TextMemory:
        """Return the memory of a stage."""
        if stage not in self._memories:
            items = remembered_items(self._experiment, stage)
            self._memories[stage] = TextMemory(
                {item: self._texts[item] for item in items}, self._experiment.memory.retrieve
            )
        return self._memories[stage]

    def of_item(self, item: str) -> TextMemory:
        """Return the memory of the stage that learns an item."""
        return self.of_stage(self._stage_of[item])


def memory_of(experiment: ExperimentConfig, checkpoint: Checkpoint | None, name: str) -> TextMemory | None:
    """Return the memory of a run's checkpoint, from its run directory; None without ``memory.retrieve``.

    ``experiment``: whose settings apply. ``name``: that of the model, for messages. Raises ConfigError if the model
    belongs to no run, RunDirectoryError if its run has kept no examples.
    """
    if not experiment.memory.retrieve:
        return None
    if checkpoint is None:
        raise ConfigError(
            f"memory.retrieve: {experiment.memory.retrieve}, but {name} belongs to no run whose training examples it "
            "could be shown. Give a run directory or one of its checkpoints, or set memory.retrieve=0."
        )
    run = checkpoint.run
    texts = {item: kept_memory(run, item) for item in remembered_items(run.experiment(), checkpoint.stage)}
    missing: Sequence[str] = [item for item, table in texts.items() if table is None]
    if missing:
        raise RunDirectoryError(
            f"{run.memory_examples(missing[0])}: is missing, but memory.retrieve: {experiment.memory.retrieve} shows "
            "examples of it. Only a run that retrieves keeps them; to answer without them, set memory.retrieve=0."
        )
    return TextMemory({item: table for item, table in texts.items() if table is not None}, experiment.memory.retrieve)
