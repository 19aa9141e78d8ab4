"""Prepares an experiment for its workers, once per run: tokeniser, token tables and test sets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.model_config import pretrained_config, sequence_limit
from ray_l4.methods import Method, Stage, Topology, get_method, graph_of, num_students, resolved, teacher_experiment
from ray_l4.setup.tokenizer_check import all_models, refuse_other_tokenizers
from ray_l4.tasks.registry import load, metric_of
from ray_l4.text.assembly import assemble, refuse_if_many
from ray_l4.text.test_sets import TestSet, build_test_set
from ray_l4.text.tokenizer import TaskTokenizer

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

    def of_teachers(self) -> Setup:
        """Return the setup of the run that trains a teacher per task, on the same tokens (REFERENCE.md#teachers)."""
        experiment = teacher_experiment(self.experiment)
        method = get_method(experiment.method)
        return replace(self, experiment=experiment, method=method, topology=method.graph(num_students(experiment)))

    def fingerprint(self) -> str:
        """Return a digest of all tokens and gold answers: equal for equal data and tokeniser."""
        digest = hashlib.blake2b(digest_size=16)
        for name in self.tasks:
            for table in (self.training[name], self.tests[name].prompts):
                for column in table.select(["ids", "prompt_length", "gen"]).itercolumns():
                    digest.update(repr(column.combine_chunks().to_pylist()).encode())
            digest.update(repr(self.tests[name].items).encode())
        return digest.hexdigest()


def prepare(experiment: ExperimentConfig) -> Setup:
    """Load the stream's data and tokenise it.

    Raises ConfigError, DataError or ModelError if anything is wrong with the experiment, before any process is started.
    """
    experiment = resolved(experiment)
    method = get_method(experiment.method)
    training = {task.name: load(task, "train", experiment.data) for task in experiment.stream}
    refuse_other_tokenizers(experiment, training)
    tests = {task.name: load(task, "test", experiment.data) for task in experiment.stream}
    tokenizer = build_tokenizer(experiment, training)
    longest = min(sequence_limit(model) for model in all_models(experiment))
    return Setup(
        experiment=experiment,
        method=method,
        topology=graph_of(experiment),
        tokenizer=tokenizer,
        max_length=longest,
        training={name: _tokens(table, name, tokenizer, longest, experiment) for name, table in training.items()},
        tests={
            task.name: build_test_set(tests[task.name], metric_of(task), tokenizer, longest, experiment.evaluation)
            for task in experiment.stream
        },
    )


def build_tokenizer(experiment: ExperimentConfig, training: Mapping[str, pa.Table]) -> TaskTokenizer:
    """Load the model's tokeniser, or train a byte-level BPE on the stream's training text, and add the task tokens."""
    model, names = experiment.model, [task.name for task in experiment.stream]
    shared = model.task_tokens == "shared"
    if model.from_scratch is None:
        wanted = model.chat_template == "auto"
        tokenizer = TaskTokenizer.pretrained(str(model.name), names, model.spare_task_tokens, shared, wanted)
        if tokenizer.chat is not None:
            log.info("prompts are rendered in the chat template of %s (model.chat_template)", model.name)
            _warn_of_a_base_model(str(model.name), tokenizer)
        return tokenizer
    texts = [
        text
        for table in training.values()
        for column in ("context", "question", "answer")
        for text in table.column(column).to_pylist()
    ]
    return TaskTokenizer.trained(texts, model.from_scratch.vocabulary, names, model.spare_task_tokens, shared)


def _warn_of_a_base_model(name: str, tokenizer: TaskTokenizer) -> None:
    """Warn if the model does not end its text as the template ends turns: some base models only carry a template."""
    config = pretrained_config(name)
    declared = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if tokenizer.eos not in (tokenizer.hf.eos_token_id, *declared):
        log.warning(
            "%s has a chat template, whose turns end in %r, but its own text ends in %r: if it is a base model that "
            "was not trained with the template, set model.chat_template: none",
            name,
            tokenizer.hf.convert_ids_to_tokens(tokenizer.eos),
            tokenizer.hf.eos_token,
        )


def _tokens(
    examples: pa.Table, name: str, tokenizer: TaskTokenizer, longest: int, experiment: ExperimentConfig
) -> pa.Table:
    tokens, dropped = assemble(examples, tokenizer, longest)
    refuse_if_many(dropped, examples.num_rows, experiment.data.max_bad_fraction, f"task {name}, train")
    if dropped:
        left_out = "; ".join(f"{drop.sample_id}: {drop.reason}" for drop in dropped[:3])
        log.warning("task %s: %d of %d training examples left out: %s", name, len(dropped), examples.num_rows, left_out)
    return tokens
