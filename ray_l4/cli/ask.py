"""``ask``: put questions to a model, one on the command line or several at a prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

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
    check_device,
    given,
    sections,
)
from ray_l4.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ray_l4.setup.inspected import Inspected
    from ray_l4.setup.loaded import AnswerRoom

_STDIN = "-"
_SET_TOP_K = ("evaluation", "evaluation.top_k")
"""Keys by which ``--set`` says how answers are decoded."""
Answer = Callable[[str, str], str]
"""Function from context and question to the answer."""


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(ask)


def ask(
    model: ModelArgument,
    task: TaskOption = None,
    context: Annotated[
        str | None, typer.Option(help="The text that the question refers to; - reads it from standard input.")
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(help="The question; the task's own if all its examples have the same. - reads standard input."),
    ] = None,
    student: StudentOption = None,
    stage: StageOption = None,
    epoch: EpochOption = None,
    experiment: ExperimentOption = None,
    set_: SettingOption = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="1, as if not given, decodes greedily; more samples from the most likely tokens."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens; as in the run if not given.")
    ] = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Ask a model: print its answer to one question, or begin a dialogue if none is given.

    A run's checkpoint answers as it does in its run. Prompts go to standard error, answers alone to standard output.
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
    )
    found, name = one_inspected(model, settings)
    given_context, given_question = (_text(value) for value in (context, question))

    from ray_l4.setup.loaded import answer_one, load_inspected

    usual = _usual_question(found, name)
    room = _room(found, name, max_new_tokens)
    loaded = load_inspected(found, device)

    def answer(context: str, question: str) -> str:
        return answer_one(found, loaded, name, context, question, room)

    asked = given_question if given_question is not None else usual if given_context is not None else None
    if asked is not None:
        typer.echo(answer(given_context or "", asked))
    else:
        _converse(answer, f"{found.name}, task {name}", given_context or "", usual)


def _top_k(option: int | None, overrides: Sequence[str]) -> int | None:
    """Return the ``evaluation.top_k`` that replaces what the experiment says: 1 unless it is given, here or there."""
    if option is not None:
        return option
    return None if any(each.partition("=")[0].strip() in _SET_TOP_K for each in overrides) else 1


def _text(value: str | None) -> str | None:
    """Return the value of an option, or standard input if it is ``-``."""
    return sys.stdin.read() if value == _STDIN else value


def _usual_question(found: Inspected, task: str) -> str | None:
    """Return the question that all examples of a task share, as set or as recorded; None if they differ."""
    configured = next((own.question for own in found.experiment.stream if own.name == task), None)
    if configured is not None or found.checkpoint is None:
        return configured
    from ray_l4.report.run_files import read_questions
    from ray_l4.text.test_sets import LONGEST_KEPT

    questions = read_questions(found.checkpoint.run, found.checkpoint.cell(task))
    (only,) = questions if len(questions) == 1 else (None,)
    return only if only and len(only) <= LONGEST_KEPT else None


def _room(found: Inspected, task: str, max_new_tokens: int | None) -> AnswerRoom:
    """Return how long answers may be: as given, as the run recorded it with its score, or as set."""
    from ray_l4.setup.loaded import DEFAULT_ANSWER, AnswerRoom

    record = found.checkpoint.run.score(found.checkpoint.cell(task)) if found.checkpoint else {}
    configured = max_new_tokens or found.experiment.evaluation.max_new_tokens
    longest = configured or record.get("max_new_tokens", DEFAULT_ANSWER)
    return AnswerRoom(longest, record.get("reserved", longest))


def _converse(answer: Answer, title: str, context: str, usual: str | None) -> None:
    """Answer questions until the end of the input. An empty line keeps the context."""
    typer.echo(f"{title}. An empty context keeps the last one; Ctrl-D ends.", err=True)
    if usual is not None:
        typer.echo(f"question of every example: {usual}", err=True)
    while True:
        try:
            context = _line(f"context{' (empty: as before)' if context else ''}: ") or context
            question = usual if usual is not None else _line("question: ")
        except EOFError:
            typer.echo(err=True)
            return
        try:
            typer.echo(answer(context, question))
        except DataError as error:
            typer.echo(f"error: {error}", err=True)


def _line(prompt: str) -> str:
    """Read a line from standard input. Raises EOFError at its end."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        import readline  # noqa: F401 - makes input() a line editor with a history

        return input(prompt).strip()
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()
