"""The result of a stage: which epochs have checkpoints, which of them is the result, and when training stops."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future

from ray_l4.cluster.membership import Membership
from ray_l4.run.checkpoints import Checkpoints
from ray_l4.run.context import RunContext
from ray_l4.run.scoring import Scoring
from ray_l4.run.stage_training import StageTraining
from ray_l4.run.validation import Validation
from ray_l4.setup.stage_plan import Assignment, StagePlan


class StageResult:
    """Writes the checkpoints of a stage, or of several side by side, and chooses the epoch that is its result.

    Without validation that is the last epoch, and it is scored as soon as it is written. With validation it is the best
    one, which is known in the end only: the checkpoint of every epoch that is the best so far is written, all students
    return to the best one, and that is scored. With ``evaluation.when: epoch`` every epoch is written and scored.
    """

    def __init__(
        self,
        context: RunContext,
        plan: StagePlan,
        membership: Membership,
        checkpoints: Checkpoints,
        scoring: Scoring,
        num_epochs: int,
        losses: Mapping[str, Sequence[Mapping[str, float]]],
    ) -> None:
        """``num_epochs``: that of each of the stages.

        ``losses``: the validation losses of the epochs before the first one that is trained now.
        """
        self._context = context
        self._plan = plan
        self._checkpoints = checkpoints
        self._scoring = scoring
        self._validation = Validation(context, plan, membership)
        self._validation.restore(losses)
        self._every = context.setup.experiment.evaluation.when == "epoch"
        self._num_epochs = num_epochs
        self._written: dict[tuple[Assignment, int], Future[None]] = {}

    @property
    def may_return_to(self) -> set[tuple[int, int]]:
        """The (stage, epoch) of the best epoch so far of every stage that is validated: students may return to it."""
        return {(stage, self._validation.best(stage)) for stage in self._validation.stages}

    @property
    def losses(self) -> Mapping[str, Sequence[Mapping[str, float]]]:
        """The validation losses so far, for a later ``StageResult`` of the same stage."""
        return self._validation.losses

    def exhausted(self) -> list[int]:
        """Return the stages that are to stop before their last epoch."""
        return self._validation.exhausted()

    def next_pause(self, epoch: int) -> int:
        """Return the first epoch from ``epoch`` on after which there is something to do before the next one."""
        return epoch if self._every or self._validation.asked else self._num_epochs

    def after(self, epoch: int, training: StageTraining) -> None:
        """Validate ``epoch``, write its checkpoints if they are to stay, and stop stages that do not get better."""
        self._validation.measure(epoch, training.learning)
        scoring = None if self._validation.asked and not self._every else self._scoring
        for own in training.learning:
            if self._every or epoch == self._best(own.stage):
                self._written[own, epoch] = self._checkpoints.keep(own, epoch, scoring)
        training.stop(self._validation.exhausted())

    def choose(self, present: Collection[Assignment]) -> None:
        """With validation, return all students that are ``present`` to the best epoch of their stage, and score it."""
        if not self._validation.asked:
            return
        for own in present:
            best, last = self._best(own.stage), self._validation.num_epochs(own.stage)
            if (own, best) in self._written:  # otherwise it was written before the run continued
                self._written[own, best].result()
            if best < last and not self._plan.begins_anew:
                self._checkpoints.return_to(own, best)
        for stage in sorted({own.stage for own in present}):
            best, last = self._best(stage), self._validation.num_epochs(stage)
            self._validation.record(stage)
            self._tell(stage, best, last)
            self._checkpoints.discard(stage, set(range(1, last + 1)) if self._every else {best})
        for own in () if self._every else present:
            description = self._checkpoints.descriptions[own.student]
            self._scoring.request_from_disk(own.stage, self._best(own.stage), own.student, description)
        for stage in () if self._every else sorted({own.stage for own in present}):
            self._scoring.request_together_from_disk(stage, self._best(stage))

    def await_written(self, present: Collection[Assignment]) -> None:
        """Wait until the checkpoints of the students that are ``present`` are on disk."""
        for (own, _), future in self._written.items():
            if own in present:  # the weights of a lost student may never arrive
                future.result()

    def num_steps(self, training: StageTraining) -> int:
        """Return the number of steps that were trained, over all stages."""
        if not self._validation.asked:
            return sum(training.num_steps(self._num_epochs).values())
        stages = training.num_steps(1)
        return sum(training.num_steps(self._validation.num_epochs(stage))[stage] for stage in stages)

    def _best(self, stage: int) -> int:
        return self._validation.best(stage) if self._validation.asked else self._num_epochs

    def _tell(self, stage: int, best: int, last: int) -> None:
        name = self._context.setup.stages[stage].name
        stopped = f", stopped after {last} of {self._num_epochs}" if last < self._num_epochs else ""
        self._context.progress.add_event(f"{name}: epoch {best} is best and stays{stopped}")
