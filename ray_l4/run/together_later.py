"""The scores of all students together, added to a finished run from the checkpoints in its directory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from ray_l4.cluster.spawn import LocalSpawner
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.methods import num_students, scores_together, stages_of
from ray_l4.methods.copying import changed
from ray_l4.monitor.curves import Curves
from ray_l4.monitor.progress import Progress
from ray_l4.monitor.timeline import Timeline
from ray_l4.run.context import RunContext
from ray_l4.run.mirroring import Mirroring
from ray_l4.run.preparation import prepare_again
from ray_l4.run.rescoring import write_results
from ray_l4.run.scoring import Scoring
from ray_l4.run.together import checkpoints_together
from ray_l4.run.work_queue import WorkQueue
from ray_l4.setup.setup import Setup
from ray_l4.store.atomic import write_text
from ray_l4.store.mirror import mirror_of
from ray_l4.store.run_directory import TOGETHER, Cell, RunDirectory

Say = Callable[[str], None]


def refuse_single(run: RunDirectory) -> None:
    """Raise ConfigError if a run has a single student."""
    if num_students(run.experiment()) < 2:
        raise ConfigError(f"{run.path}: has a single student; evaluation.together needs two or more")


def add_together(run: RunDirectory, cluster: ClusterConfig, say: Say) -> list[Cell]:
    """Score all students of a finished run together, wherever that is missing, and return the cells that are new.

    The models decode in this process, on a GPU if the evaluators of ``cluster`` have one. No other score changes, and
    neither does the time of the run. The setting is written to ``config.yaml``, and summary and reports anew, once all
    is scored; a call that is cut off leaves the result as it was, and the next one takes the scores that are missing.
    ``say`` is told of rows that cannot be scored, because a checkpoint is not on disk.

    Raises ConfigError if the run has a single student, RunDirectoryError if it has not finished, is in use or damaged,
    or if no checkpoints are left to score, and the errors of reading its data.
    """
    run.summary()
    refuse_single(run)
    mirror = mirror_of(run, run.cluster())
    with run.lock():
        if mirror is not None:
            mirror.check(run.path, new=False)
        before = set(run.scores())
        _score(run, _in_process(cluster), say)
        added = sorted(set(run.scores()) - before)
        if not any(cell.student == TOGETHER for cell in (*before, *added)):
            raise RunDirectoryError(
                f"{run.path / 'checkpoints'}: does not hold the checkpoints of all students of any stage, so they "
                "cannot be scored together"
            )
        write_text(run.path / "config.yaml", dump_yaml(_with_together(run.experiment())))
        write_results(run)
    if mirror is not None:
        mirror.push(run.path)
    return added


def missing_together(run: RunDirectory, say: Say = lambda line: None) -> Iterator[tuple[int, int]]:
    """Yield the (stage, epoch) of rows of all students together that are not whole, and for which weights are there."""
    experiment, scored = run.experiment(), run.scores()
    for stage, learned in enumerate(stages_of(experiment)):
        every, epochs = experiment.evaluation.when == "epoch", experiment.epochs_of(stage)
        for epoch in range(1, epochs + 1) if every else [run.result_epoch(stage, epochs)]:
            if all(Cell(stage, epoch, TOGETHER, task) in scored for task in learned.scored):
                continue
            if checkpoints_together(run, scored, stage, epoch, None):
                yield stage, epoch
            else:
                say(
                    f"stage {stage} ({learned.name}), epoch {epoch}: not scored together, since not all students' "
                    "checkpoints are on disk"
                )


def _score(run: RunDirectory, cluster: ClusterConfig, say: Say) -> None:
    """Score what is missing, one epoch after the other, so that the weights of one are in memory at a time."""
    rows = list(missing_together(run, say))
    if not rows:
        return
    setup = prepare_again(run, cluster, None, say).setup
    setup = replace(setup, experiment=_with_together(setup.experiment))
    context = _context(run, setup, cluster, say)
    spawner = LocalSpawner(setup, cluster, ())
    queue = WorkQueue(spawner.rpc, spawner.evaluators(), math.inf, context.timeline)
    scoring = Scoring(context, spawner.rpc, queue)
    try:
        for stage, epoch in rows:
            scoring.request_together_from_disk(stage, epoch)
            queue.wait(lambda: not len(queue), lambda: None)
    finally:
        context.curves.close()


def _context(run: RunDirectory, setup: Setup, cluster: ClusterConfig, say: Say) -> RunContext:
    return RunContext(
        setup=setup,
        cluster=cluster,
        directory=run,
        progress=Progress(),
        curves=Curves(run.path / "tensorboard", run.num_steps(len(setup.stages), say)),
        timeline=Timeline(run, say),  # never saved: it is that of the training
        mirroring=Mirroring(run, cluster, say),
        stop=threading.Event(),
    )


def _in_process(cluster: ClusterConfig) -> ClusterConfig:
    """Return a profile for one evaluator in this process, with the device and threads of those of ``cluster``."""
    evaluators = changed(cluster.evaluators, count=1).model_dump()
    return ClusterConfig.model_validate({"exchange": {"transport": "in_process"}, "evaluators": evaluators})


def _with_together(experiment: ExperimentConfig) -> ExperimentConfig:
    with_row = changed(experiment, evaluation=changed(experiment.evaluation, together=True))
    assert scores_together(with_row)
    return with_row
