"""Sections that show text: replayed examples, valid and dropped, and the worst answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.blocks import Block, Fold, Note, Section, Table
from ray_l4.report.html.text import shortened
from ray_l4.report.markdown import number
from ray_l4.report.worst_answers import REFERENCES, worst_answers
from ray_l4.store.run_directory import Cell
from ray_l4.text.added_tokens import ANS

Row = Mapping[str, Any]
"""A replayed example or an answer: column -> value."""

EACH = 3
"""Number of replayed examples shown of each task, or for each reason."""
WORST = 8
"""Number of answers shown of each task and student."""
LONGEST_CONTEXT = 300
"""Largest number of characters shown of the context of an answer."""
SHORTEST_ENDING = 3
"""Smallest number of words in an ending. A shorter one says little about the question."""


def replay(run: FinishedRun, prefix: str) -> Section:
    """Return the examples that were replayed before each stage: counts, and some that are valid, dropped or odd."""
    blocks: list[Block] = []
    for stage, name in enumerate(run.stages):
        table = run.replayed_examples(stage)
        if table is not None and table.num_rows:
            rows = table.to_pylist()
            warnings = [Note(f"Warning: {warning}") for warning in run.warnings(stage)]
            blocks.append(
                Fold(f"Before learning {name}: {_counted(rows)}", [*warnings, *_stage(rows)], open=bool(warnings))
            )
    return Section(f"{prefix}-replay", "Replay", blocks or [Note("Nothing was replayed in this run.")])


def answers(run: FinishedRun, prefix: str) -> Section:
    """Return the worst answers to every task at the last checkpoint that was scored on it."""
    blocks: list[Block] = []
    for task in run.tasks:
        cells = [run.last_scored_cell(student, task) for student in run.rows]
        of_task = [block for cell in cells if cell is not None for block in _worst(run, cell)]
        blocks.append(Fold(task, of_task or [Note("This run directory holds no answers.")]))
    return Section(f"{prefix}-answers", "Worst final answers", blocks)


def usual_endings(rows: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """Return the words with which more than half of the valid examples of a task end before the answer.

    This is mostly the one question that all examples of the task share. Tasks whose ending is shorter than
    SHORTEST_ENDING are left out.
    """
    prompts: dict[str, list[list[str]]] = {}
    for row in rows:
        if row["valid"]:
            prompts.setdefault(row["task"], []).append(_prompt(row["text"]))
    endings = {task: _majority_ending(of_task) for task, of_task in prompts.items()}
    return {task: ending for task, ending in endings.items() if len(ending) >= SHORTEST_ENDING}


def odd_examples(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Return valid examples that ask the usual question of another task than their own, each with that other task."""
    endings = usual_endings(rows)
    found = []
    for row in rows:
        alike = [task for task, ending in endings.items() if row["valid"] and _ends(_prompt(row["text"]), ending)]
        if alike and row["task"] not in alike:
            found.append((row, alike[0]))
    return found


def _stage(rows: Sequence[Row]) -> list[Block]:
    valid, dropped = [row for row in rows if row["valid"]], [row for row in rows if not row["valid"]]
    odd = odd_examples(rows)
    blocks: list[Block] = [
        _examples("Valid: the first of each task", [(row, "valid") for row in _first_of_each("task", valid)]),
        _examples(
            "Dropped: the first for each reason", [(row, row["reason"]) for row in _first_of_each("reason", dropped)]
        ),
        _examples(
            f"Odd: valid, but with the usual question of another task ({len(odd)} of {len(valid)})",
            [(row, f"asks the question of {other}") for row, other in odd[: 2 * EACH]],
        ),
    ]
    return [block for block in blocks if not isinstance(block, Table) or block.rows]


def _examples(caption: str, examples: Sequence[tuple[Row, str]]) -> Table:
    rows = [[row["task"], verdict, _name(row), shortened(row["text"].strip())] for row, verdict in examples]
    return Table(["task", "verdict", "example", "text"], rows, caption, prose=frozenset({3}))


def _name(row: Row) -> str:
    return str(row["index"]) if row.get("student") is None else f"{row['index']}, by student {row['student']}"


def _counted(rows: Sequence[Row]) -> str:
    reasons = Counter(row["reason"] for row in rows if not row["valid"])
    valid = sum(row["valid"] for row in rows)
    return ", ".join(
        [f"{valid} of {len(rows)} valid", *(f"{count} dropped ({reason})" for reason, count in reasons.most_common())]
    )


def _first_of_each(key: str, rows: Sequence[Row]) -> list[Row]:
    """Return the first EACH rows of every value of ``key``, in the order in which the values first appear."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return [row for group in groups.values() for row in group[:EACH]]


def _prompt(text: str) -> list[str]:
    """Return the words of a replayed example between its task token and the answer token."""
    return text.partition(ANS)[0].split()[1:]


def _ends(words: Sequence[str], ending: Sequence[str]) -> bool:
    return tuple(words[len(words) - len(ending) :]) == tuple(ending)


def _majority_ending(prompts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the longest ending that more than half of the prompts share."""
    ending: tuple[str, ...] = ()
    while True:
        size = len(ending) + 1
        longer = Counter(tuple(words[-size:]) for words in prompts if len(words) >= size and _ends(words, ending))
        candidate, count = longer.most_common(1)[0] if longer else ((), 0)
        if 2 * count <= len(prompts):
            return ending
        ending = candidate


def _worst(run: FinishedRun, cell: Cell) -> list[Block]:
    found = worst_answers(run, cell)
    if found is None:
        return []
    if not found.rows:
        return [Note(f"{found.caption}.")]
    shown = [
        [
            str(row["sample_id"]),
            number(row.get("score")),
            *([_asked(row)] if "question" in row else []),
            shortened(row["prediction"]),
            shortened("\n".join(row["references"][:REFERENCES])),
        ]
        for row in found.rows[:WORST]
    ]
    header = ["example", "score", *(["asked"] if "question" in found.rows[0] else []), "answer", "reference"]
    return [Table(header, shown, found.caption, prose=frozenset(range(2, len(header))))]


def _asked(row: Row) -> str:
    """Return the start of an example's context, and its question."""
    return "\n".join(text for text in (shortened(row["context"], LONGEST_CONTEXT), shortened(row["question"])) if text)
