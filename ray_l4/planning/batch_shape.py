"""How large a step's batch is, before any data is read: the worst case, or one of a given length."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig, TaskConfig
from ray_l4.errors import ConfigError
from ray_l4.methods import get_method
from ray_l4.planning.meta_models import Vocabulary, longest
from ray_l4.tasks.registry import TASKS
from ray_l4.text.sampler import LENGTH_EXPONENT, auto_batch_size
from ray_l4.text.tokens import tokens_table


@dataclass(frozen=True)
class BatchShape:
    """The batch of one step, as if every example had the same length."""

    examples: int
    """Of the whole step."""
    shards: int
    """Ranks of a student that share them."""
    micro_batch: int | None
    """Examples of a rank that go through the model together; all of its share when not given."""
    length: int
    """Tokens of an example, its task token included."""
    answer: int
    """Tokens of its answer."""
    worst_case: bool
    """Whether this is the largest batch there can be, or one of a length that was given."""

    @property
    def at_once(self) -> int:
        """Examples of the largest rank that go through the model together."""
        own = -(-self.examples // self.shards)
        return min(own, self.micro_batch or own)

    def table(self, tokens: Vocabulary, batches: int) -> pa.Table:
        """So many batches of examples of this shape, as a ``TOKENS`` table."""
        count, prompt = self.examples * batches, self.length - 1 - self.answer
        ids = [0] * (prompt - 1) + [tokens.ans] + [0] * self.answer
        gen = tokens.task_tokens[0] if tokens.task_tokens else tokens.unk
        names = [str(index) for index in range(count)]
        return tokens_table([ids] * count, [prompt] * count, [gen] * count, ["plan"] * count, names, "real")


def batch_shape(
    experiment: ExperimentConfig, cluster: ClusterConfig, tokens: int | None = None, answer: int | None = None
) -> BatchShape:
    """The batch of a step of ``experiment`` on ``cluster``.

    tokens: length of every example; when not given, the worst case: examples as long as the model allows, in batches as
    large as the experiment allows. answer: tokens of an answer; ``evaluation.reserve``, the room that is kept for one,
    when not given. Raises ConfigError for lengths that do not go together or a batch size that only data can tell.
    """
    limit = longest(experiment.model)
    if tokens is not None and not 4 <= tokens <= limit:
        raise ConfigError(f"--tokens: {tokens}; expected 4 to {limit}, the longest sequence of this model")
    cap = _batch_size(experiment)
    length, examples = _with_budget(tokens or limit, cap, experiment.training.batch_budget)
    of_answer = answer if answer is not None else min(experiment.evaluation.reserve, (length - 2) // 2)
    if not 1 <= of_answer <= length - 2:
        raise ConfigError(f"--answer: {of_answer}; expected 1 to {length - 2}, for examples of {length} tokens")
    students = cluster.students
    return BatchShape(
        examples, students.shards_per_student, students.micro_batch, length, of_answer, worst_case=tokens is None
    )


def _batch_size(experiment: ExperimentConfig) -> int:
    size = experiment.training.batch_size
    if size != "auto":
        return size
    sizes = [_examples(task) for task in experiment.stream]
    method = get_method(experiment.method)
    largest = sum(sizes) if method.stages == "union" else max(sizes)
    replayed = experiment.replay.ratio if method.replay != "none" and len(sizes) > 1 else 0.0
    return auto_batch_size(round(largest * (1 + replayed)))


def _examples(task: TaskConfig) -> int:
    if isinstance(task.train, int):
        return task.train
    if task.train == "paper" and task.name in TASKS:
        return TASKS[task.name].train
    raise ConfigError(
        f"training.batch_size: auto depends on how many examples {task.name!r} has, which is known only once they are "
        "read; to plan, give a number (--set training.batch_size=8)"
    )


def _with_budget(length: int, cap: int, budget: float | None) -> tuple[int, int]:
    """Length and number of examples that make most tokens of a batch under ``training.batch_budget`` (REFERENCE.md#batching)."""
    if budget is None:
        return length, cap
    most_at_cap = max(4, min(length, int((budget / cap) ** (1 / LENGTH_EXPONENT))))
    shapes = [(most_at_cap, cap), (length, max(1, min(cap, int(budget / length**LENGTH_EXPONENT))))]
    return max(shapes, key=lambda shape: shape[0] * shape[1])
