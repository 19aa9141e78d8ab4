"""Prepares an experiment for its workers, once per run: tokeniser, token tables and test sets."""

from __future__ import annotations

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
    stages_of,
    teacher_experiment,
)
from ray_l4.setup.begun import Begun, Texts
from ray_l4.setup.facts import ItemFacts, facts_of, longest_of
from ray_l4.setup.memories import StageMemories
from ray_l4.setup.own_batches import with_batches
from ray_l4.setup.tokenizer_check import refuse_lossy_tokenizer, refuse_other_tokenizers, refuse_too_short
from ray_l4.tasks.registry import load, metric_of
from ray_l4.tasks.slices import slices_of
from ray_l4.tasks.validation import check_validation, with_validation
from ray_l4.text.assembly import assemble, refuse_if_many
from ray_l4.text.general_text import GeneralText, general_text
from ray_l4.text.memory import TextMemory, remembered
from ray_l4.text.plain_text import without_unencodable
from ray_l4.text.stored import stored_part
from ray_l4.text.test_sets import TestSet, build_test_set
from ray_l4.text.tokenizer import TaskTokenizer

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
    """Item of the stream -> its training examples, tokenised; without items that were learned earlier."""
    tests: Mapping[str, TestSet]
    """Task -> its test set, tokenised, without demonstrations."""
    validation: Mapping[str, pa.Table] = field(default_factory=dict)
    """Item of the stream -> its validation examples, tokenised; empty without ``evaluation.validation``."""
    warnings: tuple[str, ...] = ()
    """What the user should know before the run begins."""

    facts: Mapping[str, ItemFacts] = field(default_factory=dict)
    """Item of the stream -> what is recorded of its examples, also of those that were learned earlier."""
    stored: Mapping[str, pa.Table] = field(default_factory=dict)
    """Item of the stream that was learned earlier -> its examples that stay (``STORED``), if the method keeps any."""
    general: GeneralText | None = None
    """The general text of ``evaluation.general``."""
    shown_tests: Sequence[Mapping[str, TestSet]] = ()
    """For each stage: task -> its test set with the demonstrations of that stage; empty without ``memory.retrieve``."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, each once, in the order of the stream."""
        return self.experiment.tasks

    @property
    def items(self) -> list[str]:
        """The names of the items of the stream."""
        return list(self.experiment.items)

    @property
    def stages(self) -> list[Stage]:
        """The stages, in the order in which they are learned."""
        return stages_of(self.experiment)

    def tests_of(self, stage: int) -> Mapping[str, TestSet]:
        """Return task -> the test set on which the checkpoints of a stage are scored.

        Those of all stages have the same items; their prompts differ with ``memory.retrieve`` alone.
        """
        return self.shown_tests[stage] if self.shown_tests else self.tests

    def earlier_tasks(self, stage: int) -> list[str]:
        """Return the tasks that were learned before a stage, without those that it learns itself."""
        stages = self.stages
        learned = dict.fromkeys(task for own in stages[:stage] for task in own.tasks)
        return [task for task in learned if task not in stages[stage].tasks]

    def num_examples(self, stage: int) -> int:
        """Return the number of training examples of a stage, without replayed ones."""
        learned = self.training
        return sum(
            learned[item].num_rows if item in learned else self.facts[item].training
            for item in self.stages[stage].items
        )

    def replay_ratio(self, stage: int) -> float:
        """Return the number of examples that a stage replays, as a share of its training examples."""
        return self.experiment.at_stage(stage).replay.ratio

    def replay_length(self, stage: int) -> int:
        """Return the maximum length in tokens of a pseudo-example generated for ``stage``, with all marks.

        Unless the experiment sets it, that of the longest training sequence of the stages before.
        """
        longest = self.longest_sequences
        asked = self.experiment.replay.max_length
        learned = (longest[item] for own in self.stages[:stage] for item in own.items)
        return min(asked or max(learned), self.max_length)

    @property
    def longest_sequences(self) -> dict[str, int]:
        """Item of the stream -> the length in tokens of its longest training sequence, with task token and end."""
        recorded = {item: own.longest for item, own in self.facts.items()}
        return recorded | {item: longest_of(table, self.tokenizer) for item, table in self.training.items()}

    def stored_part(self, item: str) -> pa.Table:
        """Return the examples of an item that stay (a ``STORED`` table)."""
        if item in self.stored:
            return self.stored[item]
        return stored_part(self.training[item], item, self.experiment.seed, self.experiment.replay.capacity)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Item of the stream -> a digest of its tokens and gold answers."""
        return {item: own.fingerprint for item, own in self.facts.items()}

    def of_teachers(self) -> Setup:
        """Return the setup of the run that trains a teacher per task, on the same tokens (REFERENCE.md#teachers)."""
        experiment = teacher_experiment(self.experiment)
        method = get_method(experiment.method)
        graph = method.graph(num_students(experiment))
        learned_in = {item: number for number, own in enumerate(self.stages) for item in own.items}
        shown = [self.shown_tests[learned_in[item]] for item in self.items] if self.shown_tests else ()
        return replace(
            self,
            experiment=experiment,
            method=method,
            topology=graph,
            warnings=(),
            general=None,
            shown_tests=tuple(shown),
        )


def prepare(experiment: ExperimentConfig, once_read: Callable[[], object] = lambda: None) -> Setup:
    """Load the stream's data and tokenise it. ``once_read`` and errors: as for ``prepared``."""
    return prepared(experiment, once_read)[0]


def prepared(
    experiment: ExperimentConfig, once_read: Callable[[], object] = lambda: None, begun: Begun | None = None
) -> tuple[Setup, Texts]:
    """Load the stream's data and tokenise it. Returns also the examples that a run directory keeps as text.

    ``once_read`` is called once the data has been read, and a pretrained tokeniser loaded: what is often wrong with an
    experiment has shown by then. ``begun``: what a run that goes on has already, in whose place nothing is read. Raises
    ConfigError, DataError or ModelError if anything is wrong with it.
    """
    experiment, begun = resolved(experiment), begun or Begun()
    needed = _needed(experiment, begun)
    training, validation = _examples(experiment, needed)
    refuse_other_tokenizers(experiment, training)
    of_tasks = experiment.of_tasks
    tests = {
        task: begun.tests[task] if task in begun.tests else load(of_tasks[task], "test", experiment.data)
        for task in experiment.tasks
    }
    if experiment.model.from_scratch is not None:
        once_read()
    tokenizer = _tokenizer(experiment, training, begun)
    if experiment.model.from_scratch is None:
        once_read()
    if experiment.replay.max_length is not None:
        refuse_too_short(experiment.replay.max_length, tokenizer, "replay.max_length")
    refuse_lossy_tokenizer(experiment, tokenizer, training)
    longest = min(sequence_limit(model) for model in all_models(experiment))
    experiment = with_batches(experiment)
    training, validation = (
        {item: _encodable(table, item, kind, tokenizer, experiment) for item, table in tables.items()}
        for kind, tables in (("training", training), ("validation", validation))
    )
    retrieves = bool(experiment.memory.retrieve)
    shown = {item: remembered(table) for item, table in training.items()}
    texts = Texts(tests, {**begun.memory, **shown} if retrieves else {})
    memories = StageMemories(experiment, texts.memory) if retrieves else None
    of_training, of_validation = (
        {item: _tokens(table, item, kind, tokenizer, longest, experiment, memories) for item, table in tables.items()}
        for kind, tables in (("training", training), ("validation", validation))
    )
    of_tests = {
        task: test_set_of(task, tests[task], metric_of(of_tasks[task]), tokenizer, longest, experiment)
        for task in experiment.tasks
    }
    facts = {
        item: facts_of(of_training[item], of_validation.get(item), of_tests[own.name], tokenizer)
        if item in of_training
        else begun.facts[item]
        for item, own in experiment.items.items()
    }
    setup = Setup(
        experiment=experiment,
        method=get_method(experiment.method),
        topology=graph_of(experiment),
        tokenizer=tokenizer,
        max_length=longest,
        training=of_training,
        validation=of_validation,
        tests=of_tests,
        warnings=tuple(_warnings(experiment, tokenizer)),
        facts=facts,
        stored={item: table for item, table in begun.stored.items() if item not in of_training},
        general=general_of(experiment, tokenizer, longest, begun.general),
    )
    if memories is not None:
        setup = replace(setup, shown_tests=tuple(_shown_tests(setup, tests, memories)))
    return setup, texts


def _shown_tests(setup: Setup, tests: Mapping[str, pa.Table], memories: StageMemories) -> Iterator[dict[str, TestSet]]:
    """Yield for each stage: task -> its test set with the demonstrations of that stage."""
    for number, stage in enumerate(setup.stages):
        memory = memories.of_stage(number)
        yield {
            task: test_set_of(
                task,
                tests[task],
                setup.tests[task].metric,
                setup.tokenizer,
                setup.max_length,
                setup.experiment,
                memory=memory,
            )
            for task in stage.scored
        }


def general_of(
    experiment: ExperimentConfig, tokenizer: TaskTokenizer, longest: int, kept: GeneralText | None = None
) -> GeneralText | None:
    """Return the general text of an experiment, None if it has none. Raises as ``general_text``.

    ``kept``: the one that a run has measured, which is used if its file is gone.
    """
    config = experiment.evaluation
    if config.general is None:
        return None
    if kept is not None and not config.general.exists():
        return kept
    return general_text(config.general, config.general_tokens, tokenizer, longest)


def _needed(experiment: ExperimentConfig, begun: Begun) -> list[str]:
    """Return the items whose examples have to be read: all but those of stages that were learned earlier.

    A method that stores examples needs these too, and one that retrieves, unless the run has kept them.
    """
    left = {item for stage in stages_of(experiment)[begun.first :] for item in stage.items}
    kept = (experiment.items.keys() - left) & begun.facts.keys()
    if get_method(experiment.method).stores_examples:
        kept &= begun.stored.keys()
    if experiment.memory.retrieve:
        kept &= begun.memory.keys()
    return [item for item in experiment.items if item not in kept]


def _tokenizer(experiment: ExperimentConfig, training: Mapping[str, pa.Table], begun: Begun) -> TaskTokenizer:
    if begun.tokenizer is None:
        return build_tokenizer(experiment, training)
    return begun.tokenizer.with_tasks(experiment.tasks, experiment.model.task_tokens == "shared")


def _examples(experiment: ExperimentConfig, needed: Sequence[str]) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
    """Load the training examples of the ``needed`` items, and their validation examples if any are asked for."""
    asked, items, data = experiment.evaluation.validation, experiment.items, experiment.data
    alone = len(experiment.tasks) == 1
    check_validation([items[item] for item in needed], asked, alone=alone)
    training = {item: load(items[item], "train", data) for item in needed}
    if asked is None:
        return training, {}
    divided = {item: with_validation(items[item], training[item], asked, data, alone=alone) for item in needed}
    return {item: own for item, (own, _) in divided.items()}, {item: own for item, (_, own) in divided.items()}


def test_set_of(
    task: str,
    examples: pa.Table,
    metric: str,
    tokenizer: TaskTokenizer,
    longest: int,
    experiment: ExperimentConfig,
    answer_length: int | None = None,
    memory: TextMemory | None = None,
) -> TestSet:
    """Build a test set as the experiment sets it, with demonstrations from ``memory`` if there is one.

    Other parameters and errors as for ``build_test_set``.
    """
    examples = without_unencodable(examples, tokenizer, f"task {task}, test", experiment.data.max_bad_fraction)
    if memory is not None:
        examples = memory.show(examples.slice(0, experiment.evaluation.limit))
    return build_test_set(examples, metric, tokenizer, longest, experiment.evaluation, answer_length)


def build_tokenizer(experiment: ExperimentConfig, training: Mapping[str, pa.Table]) -> TaskTokenizer:
    """Load the model's tokeniser, or train a byte-level BPE on the stream's training text, and add the task tokens."""
    model, names = experiment.model, experiment.tasks
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
    earlier = [task for task in tokenizer.gen if task not in experiment.tasks]
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


def _encodable(
    examples: pa.Table, name: str, kind: str, tokenizer: TaskTokenizer, experiment: ExperimentConfig
) -> pa.Table:
    source = f"task {name}, {_SPLIT_OF[kind]}"
    return without_unencodable(examples, tokenizer, source, experiment.data.max_bad_fraction)


def _tokens(
    examples: pa.Table,
    name: str,
    kind: str,
    tokenizer: TaskTokenizer,
    longest: int,
    experiment: ExperimentConfig,
    memories: StageMemories | None,
) -> pa.Table:
    source, tolerated = f"task {name}, {_SPLIT_OF[kind]}", experiment.data.max_bad_fraction
    if memories is not None:
        examples = memories.of_item(name).show(examples)
    tokens, dropped = assemble(examples, tokenizer, longest)
    refuse_if_many(dropped, examples.num_rows, tolerated, source)
    if dropped:
        left_out = "; ".join(f"{drop.sample_id}: {drop.reason}" for drop in dropped[:3])
        total = examples.num_rows
        log.warning("task %s: %d of %d %s examples left out: %s", name, len(dropped), total, kind, left_out)
    return tokens
