"""Sections that show text: replayed samples, good and bad, and the worst answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray_l4.report.html.blocks import Block, Fold, Note, Section, Table
from ray_l4.report.html.record import Record, read_rows
from ray_l4.report.html.text import shortened
from ray_l4.report.markdown import number
from ray_l4.store.run_directory import Cell
from ray_l4.text.tokenizer import ANS

Row = Mapping[str, Any]

EACH = 3
"""Samples that are shown of each task, or of each reason."""
WORST = 8
"""Answers that are shown of each task and student."""
REFERENCES = 3
"""References that are shown of an answer that has many."""
SHORTEST_ENDING = 3
"""Words. A shared ending of fewer says little about what was asked."""


def replay(record: Record, prefix: str) -> Section:
    """What was replayed before each stage: how much, and examples of what was kept, what was dropped, what is odd."""
    blocks: list[Block] = []
    for stage, name in enumerate(record.stages):
        rows = read_rows(
            record.path / "replay" / f"stage-{stage}.parquet", ("index", "task", "valid", "reason", "text")
        )
        if rows:
            blocks.append(Fold(f"Before learning {name}: {_counted(rows)}", _stage(rows), open=True))
    return Section(f"{prefix}-replay", "Replay", blocks or [Note("Nothing was replayed in this run.")])


def answers(record: Record, prefix: str) -> Section:
    """The worst answers to every task at the last checkpoint that was asked."""
    blocks: list[Block] = []
    for task in record.tasks:
        cells = [record.final_cell(int(student), task) for student in record.students]
        of_task = [block for cell in cells if cell is not None for block in _worst(record, cell)]
        blocks.append(Fold(task, of_task or [Note("No answers were kept.")]))
    return Section(f"{prefix}-answers", "Worst answers at the end", blocks)


def usual_endings(rows: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """Task -> the words with which more than half of its valid samples end before the answer, if there are at least
    SHORTEST_ENDING of them: mostly the one question that all examples of a task share."""
    prompts: dict[str, list[list[str]]] = {}
    for row in rows:
        if row["valid"]:
            prompts.setdefault(row["task"], []).append(_prompt(row["text"]))
    endings = {task: _majority_ending(of_task) for task, of_task in prompts.items()}
    return {task: ending for task, ending in endings.items() if len(ending) >= SHORTEST_ENDING}


def strangers(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Valid samples that were begun as one task and ask what is usual of another one, and that other task."""
    endings = usual_endings(rows)
    found = []
    for row in rows:
        alike = [task for task, ending in endings.items() if row["valid"] and _ends(_prompt(row["text"]), ending)]
        if alike and row["task"] not in alike:
            found.append((row, alike[0]))
    return found


def worst(rows: Sequence[Row]) -> list[Row]:
    """Of at least one answer, those that score less than 100, the worst first. Where a run kept no scores of single
    answers, those that equal no reference, in the order of the test set."""
    if "score" in rows[0]:
        return sorted((row for row in rows if row["score"] < 100), key=lambda row: row["score"])
    return [row for row in rows if row["prediction"].strip() not in {text.strip() for text in row["references"]}]


def _stage(rows: Sequence[Row]) -> list[Block]:
    kept, dropped = [row for row in rows if row["valid"]], [row for row in rows if not row["valid"]]
    odd = strangers(rows)
    blocks: list[Block] = [
        _samples("Kept: the first of each task", [(row, "kept") for row in _first_of_each("task", kept)]),
        _samples(
            "Dropped: the first for each reason", [(row, row["reason"]) for row in _first_of_each("reason", dropped)]
        ),
        _samples(
            f"Odd: kept, but begun as one task and asking what is usual of another ({len(odd)} of {len(kept)})",
            [(row, f"asks what {other} asks") for row, other in odd[: 2 * EACH]],
        ),
    ]
    return [block for block in blocks if not isinstance(block, Table) or block.rows]


def _samples(caption: str, samples: Sequence[tuple[Row, str]]) -> Table:
    rows = [[row["task"], verdict, _name(row), shortened(row["text"].strip())] for row, verdict in samples]
    return Table(["task", "verdict", "sample", "text"], rows, caption, prose=frozenset({3}))


def _name(row: Row) -> str:
    return str(row["index"]) if row.get("student") is None else f"{row['index']}, by student {row['student']}"


def _counted(rows: Sequence[Row]) -> str:
    reasons = Counter(row["reason"] for row in rows if not row["valid"])
    kept = sum(row["valid"] for row in rows)
    return ", ".join(
        [f"{kept} of {len(rows)} kept", *(f"{count} dropped ({reason})" for reason, count in reasons.most_common())]
    )


def _first_of_each(key: str, rows: Sequence[Row]) -> list[Row]:
    """The first EACH rows of every value of ``key``, in the order of these values' first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return [row for group in groups.values() for row in group[:EACH]]


def _prompt(text: str) -> list[str]:
    """The words of a sample between its task token and the answer token."""
    return text.partition(ANS)[0].split()[1:]


def _ends(words: Sequence[str], ending: Sequence[str]) -> bool:
    return tuple(words[len(words) - len(ending) :]) == tuple(ending)


def _majority_ending(prompts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The longest ending that more than half of the prompts share."""
    ending: tuple[str, ...] = ()
    while True:
        size = len(ending) + 1
        longer = Counter(tuple(words[-size:]) for words in prompts if len(words) >= size and _ends(words, ending))
        candidate, count = longer.most_common(1)[0] if longer else ((), 0)
        if 2 * count <= len(prompts):
            return ending
        ending = candidate


def _worst(record: Record, cell: Cell) -> list[Block]:
    rows = read_rows(record.path / "predictions" / f"{cell.name}.parquet", ("sample_id", "prediction", "references"))
    if not rows:
        return []
    low = worst(rows)
    found = "score less than 100" if "score" in rows[0] else "equal no reference"
    after = record.stages[cell.stage] if cell.stage < len(record.stages) else f"stage {cell.stage}"
    caption = (
        f"Student {cell.student} after {after}, epoch {cell.epoch}: {record.metrics[cell.task]} "
        f"{number(record.scores[cell])}; {len(low)} of {len(rows)} answers {found}"
    )
    if not low:
        return [Note(f"{caption}.")]
    shown = [
        [
            str(row["sample_id"]),
            number(row.get("score")),
            shortened(row["prediction"]),
            shortened("\n".join(row["references"][:REFERENCES])),
        ]
        for row in low[:WORST]
    ]
    return [Table(["sample", "score", "answer", "reference"], shown, caption, prose=frozenset({2, 3}))]
