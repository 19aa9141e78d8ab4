"""``ask``: put questions to a model, one on the command line or several at a prompt."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.dialogue import hold_conversations, put_questions
from ray_l4.cli.model_options import (
    DeviceOption,
    EpochOption,
    ExperimentOption,
    ModelArgument,
    SeedOption,
    SettingOption,
    StageOption,
    StudentOption,
    TaskOption,
    TrustOption,
    check_device,
    given,
    sections,
)
from ray_l4.errors import ConfigError

if TYPE_CHECKING:
    from ray_l4.setup.inspected import Inspected
    from ray_l4.tasks.chat import Message

ContextOption = Annotated[
    str | None, typer.Option(help="The text that the question refers to; - reads it from standard input.")
]
QuestionOption = Annotated[
    str | None,
    typer.Option(help="The question; the task's own if all its examples have the same. - reads standard input."),
]
SystemOption = Annotated[
    str | None, typer.Option(help="System prompt of every conversation, for a model with a chat template.")
]
TopKOption = Annotated[
    int | None,
    typer.Option(min=1, help="1, as if not given, decodes greedily; more samples from the most likely tokens."),
]
NewTokensOption = Annotated[
    int | None, typer.Option(min=1, help="Longest answer in tokens; as in the run if not given.")
]

_STDIN = "-"
_SET_TOP_K = ("evaluation", "evaluation.top_k")
"""Keys by which ``--set`` says how answers are decoded."""


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(ask)


def ask(
    model: ModelArgument,
    task: TaskOption = None,
    context: ContextOption = None,
    question: QuestionOption = None,
    system: SystemOption = None,
    student: StudentOption = None,
    stage: StageOption = None,
    epoch: EpochOption = None,
    experiment: ExperimentOption = None,
    set_: SettingOption = None,
    top_k: TopKOption = None,
    max_new_tokens: NewTokensOption = None,
    seed: SeedOption = None,
    trust_custom_code: TrustOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Ask a model: print its answer to one question, or begin a dialogue if none is given.

    A run's checkpoint answers as it does in its run: of chat data, give an example's system prompt with --system. A
    dialogue with a chat model keeps the earlier turns. Prompts go to standard error, answers alone to standard output.
    """
    from ray_l4.setup.inspected import Settings, one_inspected
    from ray_l4.store.checkpoints import Wanted

    check_device(device)
    if context == question == _STDIN:
        raise ConfigError("--context - --question -: only one of them can come from standard input")
    settings = Settings(
        wanted=Wanted(stage, epoch, student),
        tasks=[task] if task else (),
        experiment=experiment,
        overrides=set_ or (),
        sections=sections(evaluation=given(top_k=_top_k(top_k, set_ or ()))),
        seed=seed,
        trusts_code=trust_custom_code,
    )
    found, name = one_inspected(model, settings)
    given_context, given_question = (_text(value) for value in (context, question))
    _answer(_Asking(found, name, system, max_new_tokens, device), given_context, given_question)


@dataclass(frozen=True)
class _Asking:
    """Whom to ask, and how it answers."""

    found: Inspected
    task: str
    system: str | None
    max_new_tokens: int | None
    device: str


def _answer(asking: _Asking, context: str | None, question: str | None) -> None:
    """Load the model, and answer one question, or hold a dialogue if none is given or known."""
    from ray_l4.serve.asking import answer_room, usual_question
    from ray_l4.setup.loaded import answer_one, load_inspected

    found, task = asking.found, asking.task
    usual = usual_question(found, task)
    room = answer_room(found, task, asking.max_new_tokens)
    loaded = load_inspected(found, asking.device)
    chats = loaded.tokenizer.chat is not None
    begun = _begun(asking, chats)

    def answer(context: str, question: str, earlier: Sequence[Message] = ()) -> str:
        return answer_one(found, loaded, task, context, question, room, [*begun, *earlier])

    asked = question if question is not None else usual if context is not None else None
    if asked is not None:
        typer.echo(answer(context or "", asked))
    elif chats and usual is None:
        hold_conversations(answer, f"{found.name}, task {task}", context or "")
    else:
        put_questions(answer, f"{found.name}, task {task}", context or "", usual)


def _begun(asking: _Asking, chats: bool) -> list[Message]:
    """Return the turns with which every conversation begins. Raises ConfigError if the model knows no system prompt."""
    if asking.system is None:
        return []
    if not chats:
        raise ConfigError(
            f"--system: {asking.found.name} is used without a chat template, so it knows no system prompt; expected a "
            "text of its own data. Give the system prompt as part of --context."
        )
    return [{"role": "system", "content": asking.system.strip()}]


def _top_k(option: int | None, overrides: Sequence[str]) -> int | None:
    """Return the ``evaluation.top_k`` that replaces what the experiment says: 1 unless it is given, here or there."""
    if option is not None:
        return option
    return None if any(each.partition("=")[0].strip() in _SET_TOP_K for each in overrides) else 1


def _text(value: str | None) -> str | None:
    """Return the value of an option, or standard input if it is ``-``."""
    return sys.stdin.read() if value == _STDIN else value
