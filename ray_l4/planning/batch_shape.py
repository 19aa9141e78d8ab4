"""Shape of a step's batch before any data is read: the worst case, or examples of a given length."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError
from ray_l4.learner.model_config import sequence_limit
from ray_l4.methods import get_method, stages_of
from ray_l4.planning.data_lengths import DataLengths
from ray_l4.planning.meta_models import Vocabulary
from ray_l4.tasks.registry import TASKS
from ray_l4.text.sampler import LENGTH_EXPONENT, auto_batch_size
from ray_l4.text.tokens import tokens_table


@dataclass(frozen=True)
class BatchShape:
    """The batch of one step, with examples that all have the same length."""

    examples: int
    """Examples of the step, over all ranks."""
    ranks: int
    """Ranks of a student that share the examples."""
    micro_batch: int | None
    """Examples that a rank runs through the model together; its whole share if None."""
    length: int
    """Tokens of an example, its task token included."""
    answer: int
    """Tokens of the answer."""
    worst_case: bool
    """True for the largest possible batch, False for examples of a given length."""
    of_data: bool = False
    """True if the worst case is that of the run's data, False if it is all that the model allows."""
    decoded: int | None = None
    """Longest sequence that an evaluator decodes, if the data is known; otherwise ``length``."""

    @property
    def at_once(self) -> int:
        """Examples that the rank with the largest share runs through the model together."""
        share = -(-self.examples // self.ranks)
        return min(share, self.micro_batch or share)

    def table(self, vocabulary: Vocabulary, batches: int) -> pa.Table:
        """Return ``batches`` batches of examples of this shape as a ``TOKENS`` table."""
        count, prompt = self.examples * batches, self.length - 1 - self.answer
        ids = [0] * (prompt - 1) + [vocabulary.ans] + [0] * self.answer
        gen = vocabulary.task_tokens[0] if vocabulary.task_tokens else vocabulary.unk
        names = [str(index) for index in range(count)]
        return tokens_table([ids] * count, [prompt] * count, [gen] * count, ["plan"] * count, names, "real")


def batch_shape(
    experiment: ExperimentConfig,
    cluster: ClusterConfig,
    tokens: int | None = None,
    answer: int | None = None,
    data: DataLengths | None = None,
) -> BatchShape:
    """Return the shape of the batches of ``experiment`` on ``cluster``.

    tokens: length of every example. If None, the worst case: examples as long as the longest of ``data``, or without
    data as long as the model allows, in batches as large as the experiment allows. answer: tokens of an answer; if
    None, those of the longest in ``data``, or without data ``evaluation.reserve``, which a prompt leaves for one.
    Raises ConfigError for lengths that do not go together, or for a batch size that depends on data that is unknown.
    """
    limit = sequence_limit(experiment.model)
    if tokens is not None and not 4 <= tokens <= limit:
        raise ConfigError(f"--tokens: {tokens}; expected 4 to {limit}, the longest sequence of this model")
    longest = limit if data is None else max(4, min(data.trained, limit))
    cap = _batch_size(experiment, data)
    length, examples = _within_budget(tokens or longest, cap, experiment.training.batch_budget)
    assumed = min(experiment.evaluation.reserve, (length - 2) // 2) if data is None else min(data.answer, length - 2)
    answer_tokens = answer if answer is not None else max(1, assumed)
    if not 1 <= answer_tokens <= length - 2:
        raise ConfigError(f"--answer: {answer_tokens}; expected 1 to {length - 2}, for examples of {length} tokens")
    students = cluster.students
    return BatchShape(
        examples=examples,
        ranks=students.shards_per_student,
        micro_batch=students.micro_batch,
        length=length,
        answer=answer_tokens,
        worst_case=tokens is None,
        of_data=tokens is None and data is not None,
        decoded=None if data is None or tokens is not None else data.decoded,
    )


def _batch_size(experiment: ExperimentConfig, data: DataLengths | None) -> int:
    return max(_batch_size_of(experiment, stage, data) for stage in range(len(stages_of(experiment))))


def _batch_size_of(experiment: ExperimentConfig, stage: int, data: DataLengths | None) -> int:
    own = experiment.at_stage(stage)
    if own.training.batch_size != "auto":
        return own.training.batch_size
    items = experiment.items
    learned = stages_of(experiment)[stage].items
    num_examples = sum(data.examples[item] if data is not None else _num_examples(items[item]) for item in learned)
    replayed = own.replay.ratio if get_method(experiment.method).replays and len(experiment.tasks) > 1 else 0.0
    return auto_batch_size(round(num_examples * (1 + replayed)))


def _num_examples(task: TaskConfig) -> int:
    if isinstance(task.train, int):
        return task.train
    if task.train == "paper" and task.name in TASKS:
        return TASKS[task.name].train
    raise ConfigError(
        f"training.batch_size: auto depends on how many examples {task.name!r} has, which is known only after they "
        "have been read; to plan, give a number (--set training.batch_size=8)"
    )


def _within_budget(length: int, cap: int, budget: float | None) -> tuple[int, int]:
    """Return the length and the number of examples of the batch with most tokens that ``training.batch_budget`` allows
    (REFERENCE.md#batching).

    length, cap: the longest example, and the largest number of examples.
    """
    if budget is None:
        return length, cap
    longest_at_cap = max(4, min(length, int((budget / cap) ** (1 / LENGTH_EXPONENT))))
    candidates = [(longest_at_cap, cap), (length, max(1, min(cap, int(budget / length**LENGTH_EXPONENT))))]
    return max(candidates, key=lambda candidate: candidate[0] * candidate[1])
