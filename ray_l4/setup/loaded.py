"""An inspected model made ready: its weights and tokeniser, and test sets as its run makes them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_l4.config.experiment import EvaluationConfig, ExperimentConfig
from ray_l4.config.model import ModelConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.config.text import is_blank
from ray_l4.errors import ConfigError, DataError
from ray_l4.learner.initial_model import initial_model
from ray_l4.learner.inspection import LoadedModel, device_named
from ray_l4.learner.model_config import max_length, sequence_limit
from ray_l4.learner.models import load_folder
from ray_l4.methods import all_models, peer_experiment, stages_of
from ray_l4.seeds import derive
from ray_l4.setup.begun import kept_tests
from ray_l4.setup.inspected import Inspected
from ray_l4.setup.setup import build_tokenizer, test_set_of
from ray_l4.setup.tokenizer_check import refuse_too_short
from ray_l4.tasks.chat import Message, meta_of, user_turn
from ray_l4.tasks.registry import load, metric_of
from ray_l4.tasks.schema import EXAMPLES
from ray_l4.text.plain_text import without_unencodable
from ray_l4.text.prompts import encode_prompts
from ray_l4.text.test_sets import Scored, TestSet
from ray_l4.text.tokenizer import TaskTokenizer

log = logging.getLogger(__name__)

DEFAULT_ANSWER = 128
"""Length of an answer in tokens where neither the settings nor the scores of a run tell."""
_ANY_METRIC = "em"
"""Metric of a question without a known answer; its value is not used."""


@dataclass(frozen=True)
class TaskScore:
    """The scored answers of a model to one task."""

    tests: TestSet
    scored: Scored


def load_inspected(found: Inspected, device: str) -> LoadedModel:
    """Load a model onto a device (``auto``, ``cpu`` or ``cuda``).

    Raises ModelError if it cannot be loaded, ConfigError if there is no such device or ``model.chat_template`` is not
    that of the checkpoint, and the errors of reading data for the tokeniser of an untouched model from scratch.
    """
    place = device_named(device)
    own = peer_experiment(found.experiment, found.student).model
    if found.folder is not None:
        model, tokenizer = load_folder(found.folder, own.dtype, own.trust_custom_code)
        _refuse_other_template(found, own, tokenizer)
    else:
        # Only a model from scratch needs training examples: its tokeniser is trained on them.
        items = found.experiment.items if own.from_scratch is not None else {}
        training = {name: load(item, "train", found.experiment.data) for name, item in items.items()}
        tokenizer = build_tokenizer(found.experiment, training)
        model = initial_model(found.experiment, found.student, tokenizer)
    return LoadedModel(model.to(place), tokenizer, own)


def _refuse_other_template(found: Inspected, settings: ModelConfig, tokenizer: TaskTokenizer) -> None:
    """Raise ConfigError if prompts are to be rendered otherwise than those with which a checkpoint was trained.

    ``auto`` is refused only where the settings say so, not the default or the run itself.
    """
    asked, trained = settings.chat_template, "none" if tokenizer.chat is None else "auto"
    if asked == trained or (asked == "auto" and (not tokenizer.hf.chat_template or not _asks_for_template(found))):
        return
    raise ConfigError(
        f"model.chat_template: {asked}, but {found.name} was trained {'without' if asked == 'auto' else 'with'} its "
        f"chat template, and a checkpoint is used as it was trained; expected {trained}. Leave the setting out."
    )


def _asks_for_template(found: Inspected) -> bool:
    def own(experiment: ExperimentConfig) -> ModelConfig:
        return peer_experiment(experiment, found.student).model

    if found.checkpoint is not None:
        return own(found.checkpoint.run.experiment()).chat_template == "none"
    return "chat_template" in own(found.experiment).model_fields_set


def longest_sequence(found: Inspected, loaded: LoadedModel) -> int:
    """Return the longest sequence of the model's run, in tokens: all peers have room for it.

    Raises ModelError if the model of another peer cannot be found, or has fewer positions than its ``max_length``.
    """
    others = [model for model in all_models(found.experiment) if model != loaded.settings]
    own = max_length(loaded.model.config, loaded.settings.max_length)
    return min([own, *(sequence_limit(model) for model in others)])


def answer_seed(found: Inspected) -> int:
    """Return the seed of sampled answers: that of the run, for a checkpoint in its directory."""
    seed = found.experiment.seed
    return seed if found.checkpoint is None else derive(seed, "evaluate", found.checkpoint.name)


def read_examples(tasks: Sequence[TaskConfig], found: Inspected) -> dict[str, pa.Table]:
    """Read the test examples of tasks as the model's run does: where its settings hold, from its directory.

    Raises the errors of ``tasks.registry.load``.
    """
    return {task.name: _test_examples(task, found) for task in tasks}


def _test_examples(task: TaskConfig, found: Inspected) -> pa.Table:
    if found.checkpoint is not None:
        own = found.checkpoint.run.experiment()
        if own.of_tasks.get(task.name) == task and own.data == found.experiment.data:
            kept = kept_tests(found.checkpoint.run, task.name)
            if kept is not None:
                return kept
    return load(task, "test", found.experiment.data)


def score_tasks(
    found: Inspected, loaded: LoadedModel, tasks: Sequence[TaskConfig], examples: Mapping[str, pa.Table]
) -> Iterator[TaskScore]:
    """Yield the scores of a model on tasks that it need not have learned, one after another.

    Raises DataError if a question leaves no room for an answer.
    """
    longest = longest_sequence(found, loaded)
    for task in tasks:
        known = loaded.knowing(task.name)
        tests = test_set_of(
            task.name,
            examples[task.name],
            metric_of(task),
            known.tokenizer,
            longest,
            found.experiment,
            memory=found.memory,
        )
        yield TaskScore(tests, known.answer(tests, found.experiment.evaluation, answer_seed(found)))


def generate_examples(
    found: Inspected, loaded: LoadedModel, task: str, count: int, longest: int | None = None
) -> Iterator[dict[str, str | bool]]:
    """Yield pseudo-examples, sampled as the model's run samples them for replay.

    ``longest``: their largest length in tokens; that of the run if not given. Raises ModelError if the model has no
    token for the task, or fewer positions than ``longest``, ConfigError if nothing fits into the length.
    """
    config = found.experiment.replay
    if longest is not None:
        limit = max_length(loaded.model.config, longest)
    else:
        limit = min(config.max_length or _learned_length(found) or sys.maxsize, longest_sequence(found, loaded))
    refuse_too_short(limit, loaded.tokenizer, "the largest length of an example (--max-length)")
    return loaded.generate(task, count, limit, config, found.experiment.seed)


def _learned_length(found: Inspected) -> int | None:
    """Return the length of the longest training sequence of the tasks that a run's checkpoint has learned.

    None for another model, or if the run's manifest does not tell.
    """
    if found.checkpoint is None:
        return None
    recorded = found.checkpoint.run.manifest().get("longest_sequences", {})
    learned = [item for stage in stages_of(found.experiment)[: found.checkpoint.stage + 1] for item in stage.items]
    return max((recorded[item] for item in learned if item in recorded), default=None)


@dataclass(frozen=True)
class AnswerRoom:
    """How long an answer may be, in tokens."""

    max_new_tokens: int = DEFAULT_ANSWER
    reserved: int = DEFAULT_ANSWER
    """Tokens kept free for it where a long context has to be cut."""


def answer_one(
    found: Inspected,
    loaded: LoadedModel,
    task: str,
    context: str,
    question: str,
    room: AnswerRoom,
    earlier: Sequence[Message] = (),
) -> str:
    """Return a model's answer to one question, the same as in its run if the example is one of the test set.

    The arguments and errors are those of ``one_question``.
    """
    asked = one_question(found, loaded, task, context, question, room, earlier)
    if asked.cut:
        log.warning("context and question have %d tokens; they were cut to the %d that fit", asked.whole, asked.kept)
    return loaded.knowing(task).answer(asked.tests, asked.evaluation, answer_seed(found)).predictions[0]


class NoRoomError(DataError):
    """A question that leaves no room for an answer."""


@dataclass(frozen=True)
class OneQuestion:
    """A question as a test set with one example."""

    tests: TestSet
    evaluation: EvaluationConfig
    whole: int
    """Tokens of the prompt before its context was cut, without demonstrations."""

    @property
    def kept(self) -> int:
        """Tokens of the prompt."""
        return len(self.tests.prompts["ids"][0])

    @property
    def cut(self) -> bool:
        """Whether a part of the context is left out, for lack of room."""
        return self.kept < self.whole


def one_question(
    found: Inspected,
    loaded: LoadedModel,
    task: str,
    context: str,
    question: str,
    room: AnswerRoom,
    earlier: Sequence[Message] = (),
    longest: int | None = None,
) -> OneQuestion:
    """Return the prompt of a question, as a model's run makes it of an example.

    ``earlier``: the turns before the question, for a model with a chat template, a system prompt first. The context of
    chat data is these turns; other context then stands before the question in its turn. ``longest``: what
    ``longest_sequence`` returned for the model, if it was asked before.

    Raises NoRoomError if the question leaves no room for an answer, DataError if the texts are blank or not UTF-8.
    """
    if is_blank(f"{context}{question}"):
        raise DataError("context and question are both blank; give at least one of them")
    try:
        f"{context}{question}".encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the text is not UTF-8 ({error.reason} at character {error.start})") from error
    if earlier:  # a prompt takes the turns as its context
        context, question = "", user_turn(context, question)["content"]
    row = {"context": context, "question": question, "answer": "", "references": [""]}
    row |= {"task": task, "sample_id": "the question", "meta": meta_of(earlier)}
    examples = pa.Table.from_pylist([row], schema=EXAMPLES)
    evaluation = found.experiment.evaluation.model_copy(update={"max_new_tokens": room.max_new_tokens, "limit": None})
    experiment = found.experiment.model_copy(update={"evaluation": evaluation})
    known = loaded.knowing(task)
    longest = longest_sequence(found, loaded) if longest is None else longest
    examples = without_unencodable(examples, known.tokenizer, "the question", 0.0)
    whole = _checked_length(examples, known.tokenizer, longest - min(room.max_new_tokens, room.reserved))
    tests = test_set_of(task, examples, _ANY_METRIC, known.tokenizer, longest, experiment, room.reserved, found.memory)
    return OneQuestion(tests, evaluation, whole)


def _checked_length(asked: pa.Table, tokenizer: TaskTokenizer, limit: int) -> int:
    """Return the tokens of a prompt. Raises DataError if even the question alone has more than ``limit``."""
    (prompt,) = encode_prompts(asked, tokenizer)
    if prompt.within(limit) is None:
        raise NoRoomError(
            f"the question has {prompt.fixed} tokens, and the model has room for {limit} beside the answer. Shorten "
            "it, or lower --max-new-tokens."
        )
    return len(prompt.ids)
