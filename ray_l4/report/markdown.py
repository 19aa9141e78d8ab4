"""One run, or several compared, as Markdown that also reads well on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_l4.errors import ConfigError
from ray_l4.report.facts import data_sizes, facts
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.general import general_note, general_rows
from ray_l4.report.run_result import RunResult, order_title
from ray_l4.report.worst_answers import worst_in_markdown
from ray_l4.store.run_directory import TOGETHER, row_title

MIB = 2**20
TRAFFIC: Mapping[str, str] = {
    "bytes_per_step": "published by a student in a step",
    "bytes_received_per_step": "received from its teachers in a step",
}
"""Key of a summary's ``exchange`` -> its meaning."""

FIGURES = ("average_accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer")
"""Keys of a summary that hold one number for each student."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns: the first to the left, all others to the right."""
    widths = [max(2, *(len(row[column]) for row in [header, *rows])) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def comparison(runs: Sequence[RunResult]) -> str:
    """Return a table with one row for each run, for its student 0: final scores, average, forgetting, transfer, time.

    Raises ConfigError if the runs learned different streams: their averages could not be compared.
    """
    streams = {run.stream for run in runs}
    if len(streams) > 1:
        listed = "; ".join(map(order_title, sorted(streams)))
        raise ConfigError(f"report: runs that learned different streams cannot share a table: {listed}")
    tasks = runs[0].tasks
    header = ["variant", "seed", *tasks, "average", "forgetting", "backward transfer", "wall s"]
    rows = [
        [
            run.variant,
            str(run.seed),
            *(number(run.final(0)[task]) for task in tasks),
            *(number(run.figure(name, 0)) for name in ("average_accuracy", "forgetting", "backward_transfer")),
            number(run.wall_seconds, 0),
        ]
        for run in runs
    ]
    return table(header, rows)


def run_report(run: FinishedRun) -> str:
    """Return the report of a run: its scores, worst answers, replay, cost and configuration."""
    title = f"{run.name}: {run.variant} on {order_title(run.stream)}, seed {run.seed}{run.scale_note}"
    parts = [
        f"# {title}",
        f"Made by `{run.manifest['command']}`. Scores are percentages.",
        comparison([run]),
        *_lost_students(run),
        *_training_warnings(run),
        "## Run and data",
        "\n".join(f"- {name}: {value}" for name, value in facts(run)),
        table(*data_sizes(run)),
    ]
    if len(run.students) > 1:
        parts += ["## Students compared", f"Who learns from whom: {run.graph}.", _students(run)]
    for student in run.rows:
        parts += [f"## {row_title(student).capitalize()}", _matrix(run, student), _figures(run, student)]
    answers = worst_in_markdown(run, student=0)
    parts += (
        [
            "## Worst final answers",
            "Of student 0; the page that `ray-l4 report` writes has those of all students.",
            answers,
        ]
        if answers
        else []
    )
    parts += ["## Validation", validation_table(run)] if run.validation else []
    parts += ["## General text", general_note(run.general), table(*general_rows(run))] if run.general else []
    parts += ["## Replay", _replay(run), *_scarce_replay(run)] if run.replay else []
    parts += ["## Cost", _cost(run), "## Configuration", _configuration(run)]
    return "\n\n".join(parts) + "\n"


VALIDATION_COLUMNS = ("stage", "examples", "epoch", "mean loss of each epoch")
"""Columns of ``validation_rows``."""


def validation_rows(run: RunResult) -> list[list[str]]:
    """Return a row for each stage: its validation losses, and the epoch that is its result because of them."""
    return [
        [
            run.stages[stage],
            str(record["examples"]),
            f"{record['epoch']} of {len(record['means'])}",
            ", ".join(f"{mean:.4f}" for mean in record["means"]),
        ]
        for stage, record in run.validation.items()
    ]


def validation_table(run: RunResult) -> str:
    """Return ``validation_rows`` as a table."""
    return table(VALIDATION_COLUMNS, validation_rows(run))


def traffic(exchange: Mapping[str, float]) -> list[list[str]]:
    """Return table rows of the traffic of a step, without figures that an early run does not have."""
    return [[name, f"{exchange[key] / 1e6:.3f} MB"] for key, name in TRAFFIC.items() if key in exchange]


def number(value: float | None, digits: int = 1) -> str:
    """Format a figure, or a dash where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def _matrix(run: RunResult, student: int) -> str:
    rows = [[stage, *map(number, row)] for stage, row in zip(run.stages, run.matrix(student), strict=True)]
    return table(["after learning", *run.tasks], rows)


def _students(run: RunResult) -> str:
    """Return a table with a row for each student, and for all together: final scores and figures."""
    rows = [
        [
            row_title(student) if student == TOGETHER else str(student),
            *(number(run.final(student)[task]) for task in run.tasks),
            *(number(run.figure(name, student)) for name in FIGURES),
        ]
        for student in run.rows
    ]
    return table(["student", *run.tasks, *(name.replace("_", " ") for name in FIGURES)], rows)


def _lost_students(run: RunResult) -> list[str]:
    """Return a section about students that died or hung; empty if none did."""
    lines = [
        f"- Student {student} was lost ({how}). The others went on without it; each learned from the mean of its "
        "remaining teachers."
        for student, how in run.lost_students.items()
    ]
    if run.restarts:
        lines.append(f"- Stages learned again from the last checkpoint because a student was lost: {run.restarts}.")
    return ["## Lost students", "\n".join(lines)] if lines else []


def _training_warnings(run: FinishedRun) -> list[str]:
    """Return a section about training that went wrong; empty if none did."""
    lines = [f"- Warning: {warning}" for warning in run.training_warnings]
    return ["## Warnings of the training", "\n".join(lines)] if lines else []


def _figures(run: RunResult, student: int) -> str:
    return "; ".join(f"{name.replace('_', ' ')} {number(run.figure(name, student))}" for name in FIGURES) + "."


def _replay(run: RunResult) -> str:
    rows = [
        [run.stages[stage], str(counts["requested"]), str(counts["valid"]), str(counts["dropped"])]
        for stage, counts in run.replay.items()
    ]
    return table(["before learning", "requested", "valid", "dropped"], rows)


def _scarce_replay(run: FinishedRun) -> list[str]:
    """Return a paragraph for each stage and task of which few generated examples were valid."""
    return [
        f"Before learning {run.stages[stage]}: {warning}" for stage in run.replay for warning in run.warnings(stage)
    ]


def _cost(run: RunResult) -> str:
    rows = [
        ["wall time", f"{run.wall_seconds:.0f} s"],
        *traffic(run.exchange),
        ["time students wait for their teachers", f"{100 * run.exchange['wait_fraction']:.1f} %"],
        *([f"peak memory of {process}", f"{peak / MIB:.0f} MiB"] for process, peak in run.peak_memory_bytes.items()),
    ]
    return table(["figure", "value"], rows)


def _configuration(run: FinishedRun) -> str:
    config, cluster = (run.text(name).strip() for name in ("config.yaml", "cluster.yaml"))
    return f"```yaml\n{config}\n```\n\n```yaml\n{cluster}\n```"
