"""Prepares an experiment for its workers, once per run: tokeniser, token tables and test sets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.model import ModelConfig
from ray_l4.learner.model_config import pretrained_config, sequence_limit
from ray_l4.methods import (
    Method,
    Stage,
    Topology,
    all_models,
    get_method,
    graph_of,
    num_students,
    resolved,
    teacher_experiment,
)
from ray_l4.setup.tokenizer_check import refuse_lossy_tokenizer, refuse_other_tokenizers, refuse_too_short
from ray_l4.tasks.registry import load, metric_of
from ray_l4.tasks.slices import slices_of
from ray_l4.tasks.validation import check_validation, with_validation
from ray_l4.text.assembly import assemble, refuse_if_many
from ray_l4.text.plain_text import without_unencodable
from ray_l4.text.test_sets import TestSet, build_test_set
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import sequence_lengths

_SPLIT_OF = {"training": "train", "validation": "validation"}
"""Kind of examples -> the split that messages name."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """The data and settings that all workers of a run share."""

    experiment: ExperimentConfig
    method: Method
    topology: Topology
    """The topology of all peers; ``cluster.membership`` knows which of them are still present."""
    tokenizer: TaskTokenizer
    max_length: int
    """Maximum length of a sequence, in tokens."""
    training: Mapping[str, pa.Table]
    """Task -> its training examples, tokenised."""
    tests: Mapping[str, TestSet]
    """Task -> its test set, tokenised."""
    validation: Mapping[str, pa.Table] = field(default_factory=dict)
    """Task -> its validation examples, tokenised; empty without ``evaluation.validation``."""
    warnings: tuple[str, ...] = ()
    """What the user should know before the run begins."""

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, in the order of the stream."""
        return [task.name for task in self.experiment.stream]

    @property
    def stages(self) -> list[Stage]:
        """The stages, in the order in which they are learned."""
        return self.method.kind.stages(self.tasks)

    def num_examples(self, stage: int) -> int:
        """Return the number of training examples of a stage, without replayed ones."""
        return sum(self.training[task].num_rows for task in self.stages[stage].tasks)

    def replay_length(self, stage: int) -> int:
        """Return the maximum length in tokens of a pseudo-example generated for ``stage``, with all marks.

        Unless the experiment sets it, that of the longest training sequence of the tasks learned before.
        """
        longest = self.longest_sequences
        asked = self.experiment.replay.max_length or max(longest[task] for task in self.tasks[:stage])
        return min(asked, self.max_length)

    @property
    def longest_sequences(self) -> dict[str, int]:
        """Task -> the length in tokens of its longest training sequence, with task token and end."""
        marks = 1 + len(self.tokenizer.lm_end)
        return {
            task: marks + (int(sequence_lengths(table).max()) if table.num_rows else 0)
            for task, table in self.training.items()
        }

    def of_teachers(self) -> Setup:
        """Return the setup of the run that trains a teacher per task, on the same tokens (REFERENCE.md#teachers)."""
        experiment = teacher_experiment(self.experiment)
        method = get_method(experiment.method)
        return replace(
            self, experiment=experiment, method=method, topology=method.graph(num_students(experiment)), warnings=()
        )

    def fingerprint(self) -> str:
        """Return a digest of all tokens and gold answers: equal for equal data and tokeniser."""
        digest = hashlib.blake2b(digest_size=16)
        for name in self.tasks:
            validation = [self.validation[name]] if name in self.validation else []
            for table in (self.training[name], self.tests[name].prompts, *validation):
                for column in ("ids", "prompt_length", "gen"):
                    for piece in _list_in_pieces(table.select([column])):
                        digest.update(piece.encode())
            for piece in _tuple_in_pieces(self.tests[name].items):
                digest.update(piece.encode())
        return digest.hexdigest()


def _list_in_pieces(table: pa.Table) -> Iterator[str]:
    """Yield ``repr`` of the values of a table's only column, as a list, piece by piece."""
    yield "["
    for number, part in enumerate(slices_of(table)):
        inner = repr(part.column(0).to_pylist())[1:-1]
        yield f", {inner}" if number else inner
    yield "]"


def _tuple_in_pieces(items: Sequence[object]) -> Iterator[str]:
    """Yield ``repr`` of the items as a tuple, piece by piece."""
    yield "("
    for number, item in enumerate(items):
        yield f", {item!r}" if number else repr(item)
    yield ",)" if len(items) == 1 else ")"


def prepare(experiment: ExperimentConfig, once_read: Callable[[], object] = lambda: None) -> Setup:
    """Load the stream's data and tokenise it.

    ``once_read`` is called once the data has been read, and a pretrained tokeniser loaded: what is often wrong with an
    experiment has shown by then. Raises ConfigError, DataError or ModelError if anything is wrong with it.
    """
    experiment = resolved(experiment)
    method = get_method(experiment.method)
    training, validation = _examples(experiment)
    refuse_other_tokenizers(experiment, training)
    tests = {task.name: load(task, "test", experiment.data) for task in experiment.stream}
    if experiment.model.from_scratch is not None:
        once_read()
    tokenizer = build_tokenizer(experiment, training)
    if experiment.model.from_scratch is None:
        once_read()
    if experiment.replay.max_length is not None:
        refuse_too_short(experiment.replay.max_length, tokenizer, "replay.max_length")
    refuse_lossy_tokenizer(experiment, tokenizer, training)
    longest = min(sequence_limit(model) for model in all_models(experiment))
    return Setup(
        experiment=experiment,
        method=method,
        topology=graph_of(experiment),
        tokenizer=tokenizer,
        max_length=longest,
        training={
            name: _tokens(table, name, "training", tokenizer, longest, experiment) for name, table in training.items()
        },
        validation={
            name: _tokens(table, name, "validation", tokenizer, longest, experiment)
            for name, table in validation.items()
        },
        tests={
            task.name: test_set_of(task.name, tests[task.name], metric_of(task), tokenizer, longest, experiment)
            for task in experiment.stream
        },
        warnings=tuple(_warnings(experiment, tokenizer)),
    )


def _examples(experiment: ExperimentConfig) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
    """Load the training examples of every task, and the validation examples if any are asked for."""
    asked, stream, data = experiment.evaluation.validation, experiment.stream, experiment.data
    check_validation(stream, asked)
    training = {task.name: load(task, "train", data) for task in stream}
    if asked is None:
        return training, {}
    alone = len(stream) == 1
    divided = {task.name: with_validation(task, training[task.name], asked, data, alone=alone) for task in stream}
    return {name: own for name, (own, _) in divided.items()}, {name: own for name, (_, own) in divided.items()}


def test_set_of(
    task: str,
    examples: pa.Table,
    metric: str,
    tokenizer: TaskTokenizer,
    longest: int,
    experiment: ExperimentConfig,
    answer_length: int | None = None,
) -> TestSet:
    """Build a test set as the experiment sets it. Parameters and errors as for ``build_test_set``."""
    examples = without_unencodable(examples, tokenizer, f"task {task}, test", experiment.data.max_bad_fraction)
    return build_test_set(examples, metric, tokenizer, longest, experiment.evaluation, answer_length)


def build_tokenizer(experiment: ExperimentConfig, training: Mapping[str, pa.Table]) -> TaskTokenizer:
    """Load the model's tokeniser, or train a byte-level BPE on the stream's training text, and add the task tokens."""
    model, names = experiment.model, [task.name for task in experiment.stream]
    shared = model.task_tokens == "shared"
    if model.from_scratch is None:
        wanted = model.chat_template == "auto"
        tokenizer = TaskTokenizer.pretrained(
            str(model.name), names, model.spare_task_tokens, shared, wanted, model.trust_custom_code
        )
        if tokenizer.chat is not None:
            log.info("prompts are rendered in the chat template of %s (model.chat_template)", model.name)
        return tokenizer
    texts = (
        text
        for table in training.values()
        for column in ("context", "question", "answer")
        for part in slices_of(table.select([column]))
        for text in part.column(column).to_pylist()
    )
    return TaskTokenizer.trained(texts, model.from_scratch.vocabulary, names, model.spare_task_tokens, shared)


def _warnings(experiment: ExperimentConfig, tokenizer: TaskTokenizer) -> Iterator[str]:
    stream = {task.name for task in experiment.stream}
    earlier = [task for task in tokenizer.gen if task not in stream]
    if earlier:
        yield (
            f"{experiment.model.name} is a checkpoint that has learned {', '.join(earlier)}. This run replays only "
            f"tasks of its own stream, so the model will probably forget {'it' if len(earlier) == 1 else 'them'}. To "
            "keep an earlier task, add it to the stream, or score it afterwards with ray-l4 evaluate to see the loss."
        )
    if experiment.model.chat_template == "auto" and tokenizer.chat is None and tokenizer.hf.chat_template:
        yield (
            f"{experiment.model.name} is a checkpoint that was trained without its chat template, so this run leaves "
            "the template out too (model.chat_template: auto has no effect). To use the template, begin with the model "
            "that the checkpoint was made from; to accept this, set model.chat_template: none."
        )
    if tokenizer.chat is not None and not _ends_turns(experiment.model, tokenizer):
        turn, text = tokenizer.hf.convert_ids_to_tokens(tokenizer.eos), tokenizer.hf.eos_token
        yield (
            f"{experiment.model.name} has a chat template, whose turns end in {turn}, but its own text ends in {text}. "
            "If it is a base model that was not trained with the template, set model.chat_template: none."
        )


def _ends_turns(model: ModelConfig, tokenizer: TaskTokenizer) -> bool:
    """Return whether the model ends its text as its chat template ends turns, by its tokeniser or configuration."""
    declared = pretrained_config(str(model.name), model.trust_custom_code).eos_token_id
    return tokenizer.eos in (tokenizer.hf.eos_token_id, *(declared if isinstance(declared, list) else [declared]))


def _tokens(
    examples: pa.Table, name: str, kind: str, tokenizer: TaskTokenizer, longest: int, experiment: ExperimentConfig
) -> pa.Table:
    source, tolerated = f"task {name}, {_SPLIT_OF[kind]}", experiment.data.max_bad_fraction
    examples = without_unencodable(examples, tokenizer, source, tolerated)
    tokens, dropped = assemble(examples, tokenizer, longest)
    refuse_if_many(dropped, examples.num_rows, tolerated, source)
    if dropped:
        left_out = "; ".join(f"{drop.sample_id}: {drop.reason}" for drop in dropped[:3])
        total = examples.num_rows
        log.warning("task %s: %d of %d %s examples left out: %s", name, len(dropped), total, kind, left_out)
    return tokens
