"""The experiment that makes one student of the students of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ray_l4.config.experiment import DistillationConfig, ExperimentConfig, PeersConfig, TeacherConfig
from ray_l4.config.stream import StageSettings
from ray_l4.methods.copying import changed

FUSING_METHOD = "fuse"
"""Method that distils the students of a finished run into one (REFERENCE.md#fusion)."""


def fusing(experiment: ExperimentConfig, run: Path, students: Sequence[int]) -> ExperimentConfig:
    """Return the experiment that distils ``students`` of a finished ``run`` of ``experiment`` into one.

    It has the settings of the run's last stage, but distils with those of the method. The student has the settings and
    the model of the first of ``students``.
    """
    last = experiment.at_stage(len(experiment.stream) - 1)
    each = experiment.peers.each
    return changed(
        last,
        method=FUSING_METHOD,
        variant=None,
        stream=[item.model_copy(update={"settings": StageSettings()}) for item in experiment.stream],
        distillation=DistillationConfig(),
        teachers=TeacherConfig(run=run.absolute(), students=list(students)),
        peers=PeersConfig(each=[each[peer] for peer in (students[0], *students)] if each else []),
    )
