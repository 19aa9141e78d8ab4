"""Going back to the last stage of a run that is whole, if the files of a later one are damaged."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.methods import get_method, graph_of, stages_of, teacher_experiment
from ray_l4.setup.setup import Setup
from ray_l4.store.checkpoints import checkpoints
from ray_l4.store.general import GENERAL
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.whole_stages import Needed, Whole, damaged_scores, return_to, whole_stages


def whole_part(run: RunDirectory, experiment: ExperimentConfig) -> Whole:
    """Return how many of a run's finished stages can be built on, and what is wrong with the next one, if anything."""
    state, stages = run.state(), stages_of(experiment)
    method = get_method(experiment.method)
    needed = Needed(
        scored=[(*stage.scored, *([GENERAL] if experiment.evaluation.general else [])) for stage in stages],
        students=graph_of(experiment).without(state.lost_students).students,
        epochs=[experiment.epochs_of(stage) for stage in range(len(stages))],
        validated=experiment.evaluation.validation is not None,
        guarded=method.guard_learns,
        independent=method.kind.independent,
    )
    return whole_stages(run, needed, min(state.stages_done, len(stages)))


def first_stage(run: RunDirectory, experiment: ExperimentConfig) -> int:
    """Return the first stage that a run which goes on may have to learn, or whose teacher it may have to train."""
    own = run.teachers()
    first = whole_part(run, experiment).stages
    if not get_method(experiment.method).has_task_teachers or experiment.teachers.run is not None:
        return first
    if not (own / "config.yaml").is_file():
        return 0
    return min(first, whole_part(RunDirectory(own), teacher_experiment(experiment)).stages)


def go_back_if_damaged(run: RunDirectory, setup: Setup, tell: Callable[[str], None]) -> None:
    """Before a run goes on, return it to its last stage that is whole. ``tell`` gets a warning if it was damaged.

    Raises RunDirectoryError if there is no checkpoint at all: somebody removed them, or their disk is not mounted, and
    all results would be lost as well.
    """
    for path, damage in damaged_scores(run):
        tell(f"warning: {str(damage).rstrip('.')}. It is removed; a student that is not lost is scored again.")
        path.unlink()
    if not run.state().stages_done:
        return
    whole = whole_part(run, setup.experiment)
    if whole.damage is None:
        return
    if not checkpoints(run):
        raise RunDirectoryError(
            f"{run.path / 'checkpoints'}: holds no checkpoint, although stages are done: {whole.damage}. Nothing is "
            "changed, so that the results stay. Bring the checkpoints back, or start a new run with another --run-dir."
        )
    refuse_unread(run, setup, whole.stages, whole.damage)
    state = run.state()
    tell(_warning(setup, whole.damage, whole.stages))
    save = partial(run.save_state, state.model_copy(update={"stages_done": whole.stages}))
    return_to(run, whole.stages, save)


def go_back(
    run: RunDirectory,
    setup: Setup,
    damage: DamagedError,
    save: Callable[[int], None],
    disk: Executor,
    tell: Callable[[str], None],
) -> int:
    """Return a run that found ``damage`` to its last whole stage. Returns how many stages are done then.

    If all finished stages are whole, a checkpoint of the one under way may be damaged: it begins again. Anything else
    is raised, since learning again would not mend it. ``disk``: the thread that writes checkpoints.
    """
    whole = whole_part(run, setup.experiment)
    if whole.damage is None and not str(damage).startswith(str(run.path / "checkpoints")):
        raise damage
    refuse_unread(run, setup, whole.stages, str(damage))
    tell(_warning(setup, whole.damage or str(damage), whole.stages))
    disk.submit(return_to, run, whole.stages, partial(save, whole.stages)).result()
    return whole.stages


def refuse_unread(run: RunDirectory, setup: Setup, stages: int, damage: str) -> None:
    """Raise RunDirectoryError if the run would learn a stage again whose training examples it has not read."""
    unread = [item for stage in setup.stages[stages:] for item in stage.items if item not in setup.training]
    if unread:
        raise RunDirectoryError(
            f"{damage.rstrip('.')}. The run has to go back to {_place(setup, stages)}, and has not read the training "
            f"examples of {', '.join(unread)}. Resume it: ray-l4 resume {run.path}"
        )


def _place(setup: Setup, stages: int) -> str:
    return f"the end of {setup.stages[stages - 1].name}" if stages else "its beginning"


def _warning(setup: Setup, damage: str, stages: int) -> str:
    return f"warning: {damage.rstrip('.')}. The run goes back to {_place(setup, stages)} and learns from there again."
