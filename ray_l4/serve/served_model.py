"""A checkpoint that is served: what it is called, what it has learned, and how requests become its prompts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ray_l4.errors import ModelError, nearest
from ray_l4.learner.answering import answer_decoding, answer_prompts
from ray_l4.learner.engine import Prompt
from ray_l4.learner.inspection import LoadedModel
from ray_l4.seeds import derive
from ray_l4.serve.asked import Asked, Sampling
from ray_l4.serve.asking import Habit, habit_of
from ray_l4.serve.choice import learned_tasks
from ray_l4.serve.generator import Generator
from ray_l4.serve.learnable import refuse_unlearnable
from ray_l4.serve.limits import Limits
from ray_l4.serve.meter import Meter
from ray_l4.serve.problems import RequestError
from ray_l4.setup.inspected import Inspected, Settings, inspected
from ray_l4.setup.loaded import (
    AnswerRoom,
    NoRoomError,
    answer_seed,
    load_inspected,
    longest_sequence,
    one_question,
)
from ray_l4.store.checkpoints import Checkpoint
from ray_l4.store.inbox.example import Example
from ray_l4.tasks.chat import Message
from ray_l4.text.chat_template import RefusedConversationError
from ray_l4.text.tokenizer import TaskTokenizer

log = logging.getLogger("ray_l4.serve")

_PLAIN_TOKENS = 16
"""Tokens of a continuation without a task, unless the request says how many; as in OpenAI's interface."""


class ServedModel:
    """A loaded checkpoint and the thread that runs it."""

    def __init__(self, found: Inspected, loaded: LoadedModel, limits: Limits, meter: Meter) -> None:
        self._found, self._loaded, self._limits = found, loaded, limits
        self.checkpoint: Checkpoint | None = found.checkpoint
        self.name = model_name(found)
        """Name under which clients ask for it: that of its run's folder, or of its own."""
        self.tasks = (
            found.tasks if found.checkpoint is None else learned_tasks(found.experiment, found.checkpoint.stage)
        )
        """Tasks that it has learned."""
        self.loaded_at = int(time.time())
        self.generator = Generator(loaded, limits, meter)
        self.users = 0
        """Requests that use it; counted by the service."""
        self._longest = longest_sequence(found, loaded)
        self._habits: dict[str, Habit] = {}
        self._encoding = threading.Lock()  # a tokeniser is set up anew for every kind of call

    @property
    def fingerprint(self) -> str:
        """Which stage and student it is."""
        place = self.checkpoint
        return "checkpoint" if place is None else f"stage-{place.stage}.student-{place.student}"

    @property
    def place(self) -> dict[str, int | None]:
        """Stage, epoch and student; None for a checkpoint of no run."""
        names = ("stage", "epoch", "student")
        return {name: getattr(self.checkpoint, name) if self.checkpoint else None for name in names}

    @property
    def tokenizer(self) -> TaskTokenizer:
        """Its tokeniser. Decoding needs no lock."""
        return self._loaded.tokenizer

    @property
    def chats(self) -> bool:
        """Whether it has a chat template."""
        return self.tokenizer.chat is not None

    def task_named(self, model: str) -> str | None:
        """Return the task that ``RUN/TASK`` names; None for ``RUN``. Raises RequestError if it is neither."""
        own, _, task = model.partition("/")
        if own != self.name or (task and task not in self.tasks) or model.endswith("/"):
            known = [self.name, *(f"{self.name}/{each}" for each in self.tasks)]
            raise RequestError(404, f"there is no model {model!r}. {nearest(model, known)}", "model_not_found", "model")
        return task or None

    def check_task(self, task: str) -> None:
        """Raise RequestError if the model has not learned ``task``."""
        if task not in self.tasks:
            hint = nearest(task, self.tasks, "It has learned none.")
            raise RequestError(404, f"{self.name} has not learned a task {task!r}. {hint}", "task_not_found", "task")

    def habit(self, task: str) -> Habit:
        """Return how a task is asked, as its run tells."""
        known = self._habits.get(task)
        if known is None:
            known, settled = habit_of(self._found, task, self._longest)
            if settled:
                self._habits[task] = known
        return known

    def usual_question(self, task: str) -> str | None:
        """Return the question that all examples of a task share; None if they differ."""
        return self.habit(task).question

    def question(
        self, task: str, context: str, question: str | None, sampling: Sampling, earlier: Sequence[Message] = ()
    ) -> Asked:
        """Return the prompt of a question about a task, as the run makes it of an example.

        ``question``: the task's own if it is None. ``earlier``: turns before it, for a model with a chat template.
        Raises RequestError if there is none, or if it is too long; DataError if it cannot be a prompt.
        """
        self._check_new(sampling)
        habit = self.habit(task)
        asked = habit.question if question is None else question
        if asked is None:
            raise RequestError(
                400, f"question is missing; the examples of {task} have questions of their own", "missing", "question"
            )
        room = AnswerRoom(sampling.max_tokens or habit.room.max_new_tokens, habit.room.reserved)
        try:
            with self._encoding:
                one = one_question(self._found, self._loaded, task, context, asked, room, earlier, self._longest)
        except NoRoomError as error:
            raise _too_long(str(error)) from error
        self._check_length(one.whole)
        (prompt,) = answer_prompts(one.tests, [0], answer_seed(self._found))
        return self._asked(prompt, sampling, strip=True, cut=one.cut)

    def check_example(self, example: Example) -> None:
        """Raise RequestError if an example of any task, a new one included, is too long to be learned."""
        with self._encoding:
            refuse_unlearnable(example, self.tokenizer, self.tasks[0], self._longest)

    def plain(self, text: str, sampling: Sampling) -> Asked:
        """Return a text as a prompt of its own, without a task. Raises RequestError if it is empty or too long."""
        with self._encoding:
            ids = self.tokenizer.encode(text)
        return self._plain(ids, sampling, _PLAIN_TOKENS, strip=False)

    def conversation(self, turns: Sequence[Message], sampling: Sampling) -> Asked:
        """Return a conversation in the model's chat template, without a task.

        Raises RequestError if the template refuses it, or if it is too long.
        """
        chat = self.tokenizer.chat
        if chat is None:
            known = ", ".join(f"{self.name}/{task}" for task in self.tasks)
            message = f"{self.name} has no chat template; name a task ({known}), or use /v1/completions"
            raise RequestError(400, message, "no_chat_template", "model")
        try:
            with self._encoding:
                (encoded,) = chat.encode([chat.prompt(turns)])
        except RefusedConversationError as error:
            raise RequestError(400, str(error), "invalid_value", "messages") from error
        return self._plain(encoded.ids, sampling, self._longest, strip=True)

    def _plain(self, ids: Sequence[int], sampling: Sampling, usual: int, strip: bool) -> Asked:
        self._check_new(sampling)
        if not ids:
            raise RequestError(400, "the prompt is blank, expected some text", "invalid_value", "prompt")
        self._check_length(len(ids), self._longest - 1)
        limit = min(sampling.max_tokens or usual, self._longest - len(ids))
        return self._asked(Prompt(ids, limit), sampling, strip)

    def _check_new(self, sampling: Sampling) -> None:
        most = self._limits.new_tokens
        if sampling.max_tokens is not None and sampling.max_tokens > most:
            raise RequestError(400, f"max_tokens: at most {most:,} are generated", "invalid_value", "max_tokens")

    def _check_length(self, tokens: int, most: int | None = None) -> None:
        limit = self._limits.prompt_tokens if most is None else min(most, self._limits.prompt_tokens)
        if tokens > limit:
            raise _too_long(f"the prompt has {tokens:,} tokens; at most {limit:,} are taken. Shorten it.")

    def _asked(self, prompt: Prompt, sampling: Sampling, strip: bool, cut: bool = False) -> Asked:
        decoding = answer_decoding(self.tokenizer, self._found.experiment.evaluation)
        if sampling.temperature:
            seed = derive(time.time_ns() if sampling.seed is None else sampling.seed, "served")
            prompt = replace(prompt, seed=seed)
            decoding = replace(
                decoding, top_k=self.tokenizer.size, temperature=sampling.temperature, top_p=sampling.top_p or 1.0
            )
        return Asked(prompt, replace(decoding, end=self.tokenizer.eos), strip, cut)

    def close(self, seconds: float | None = None) -> None:
        """End its thread once all that it was asked is answered."""
        self.generator.close(seconds)


def _too_long(message: str) -> RequestError:
    return RequestError(400, message, "context_length_exceeded", "prompt")


def model_name(found: Inspected) -> str:
    """Return the name under which a model is served."""
    folder = found.checkpoint.run.path if found.checkpoint is not None else found.folder
    return Path(str(folder)).resolve().name


@dataclass(frozen=True)
class Loader:
    """Loads checkpoints to be served."""

    limits: Limits
    meter: Meter
    device: str = "auto"
    trusts_code: bool = False

    def load(self, folder: Path) -> ServedModel:
        """Load the checkpoint in a folder. Raises the errors of ``inspected`` and ``load_inspected``."""
        settings = Settings(sections={"evaluation": {"top_k": 1}}, trusts_code=self.trusts_code)
        (found,) = inspected(str(folder), settings)
        if found.folder is None:
            raise ModelError(f"{folder}: holds no task tokens; expected a run directory, or a checkpoint of a run")
        if found.memory is not None:  # read now, not with the first request
            log.info("%s is shown examples of %d (memory.retrieve)", found.name, len(found.memory))
        return ServedModel(found, load_inspected(found, self.device), self.limits, self.meter)
