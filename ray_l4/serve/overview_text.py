"""An overview of a run as text, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from ray_l4.config.text import counted
from ray_l4.report.markdown import number, table
from ray_l4.serve.overview_types import Overview, StageOverview, TaskOverview


def overview_text(found: Overview) -> str:
    """Return what is served, what is being learned, what waits, and the scores after every stage."""
    return "\n".join([*_now(found), "", _tasks(found), "", _stages(found), *_problems(found)])


def _now(found: Overview) -> Iterator[str]:
    served, learning = found.served, found.learning
    yield f"{found.name} ({found.method}, {counted(found.students, 'student')})"
    if served is None:
        yield "serving: nothing yet, for no stage has finished"
    else:
        scores = f"average {number(found.average)}, forgetting {number(found.forgetting)}"
        yield f"serving: stage {served.stage} ({served.name}), student {served.student}; {scores}"
    if learning is None:
        yield "learning: nothing"
    else:
        how = "" if learning.running else "; interrupted, to be resumed"
        epochs = f"{learning.epochs_done} of {counted(learning.epochs, 'epoch')} done"
        yield f"learning: stage {learning.stage} ({learning.name}), {epochs}{how}"
    waiting = [f"{task.name} {task.waiting}" for task in found.tasks if task.waiting]
    yield f"waiting in the inbox: {', '.join(waiting) or 'nothing'}"


def _tasks(found: Overview) -> str:
    return table(["task", "metric", "score", "best", "forgetting", "waiting"], [_task(task) for task in found.tasks])


def _task(task: TaskOverview) -> list[str]:
    figures = (task.score, task.best, task.forgetting)
    return [task.name, task.metric, *map(number, figures), str(task.waiting)]


def _stages(found: Overview) -> str:
    tasks = [task.name for task in found.tasks if not task.is_new]
    rows = [[*_stage(stage), *(number(stage.scores.get(task)) for task in tasks)] for stage in found.stages]
    return table(["stage", "learned", "state", *tasks], rows)


def _stage(stage: StageOverview) -> list[str]:
    if stage.served:
        state = "served"
    elif stage.promoted is False:
        state = f"not served: {stage.why}"
    else:
        state = stage.state
    return [str(stage.stage), stage.name, state]


def _problems(found: Overview) -> list[str]:
    return ["", *(f"problem: {problem}" for problem in found.problems)] if found.problems else []
