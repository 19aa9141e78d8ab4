"""A run, or several side by side, as Markdown that also reads well on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_l4.errors import ConfigError
from ray_l4.methods import METHODS, graph_in_words
from ray_l4.store.run_directory import RunDirectory, read_json

MIB = 2**20
TRAFFIC: Mapping[str, str] = {
    "bytes_per_step": "published by a student in a step",
    "bytes_received_per_step": "received from its teachers in a step",
}
"""Key of a summary's ``exchange`` -> what it means."""

FIGURES = ("average_accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer")
"""Keys of a summary that hold one number for each student."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned: the first to the left, all others to the right."""
    widths = [max(2, *(len(row[column]) for row in [header, *rows])) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def comparison(summaries: Sequence[Mapping[str, Any]]) -> str:
    """One row for each run (its student 0): final score of every task, average, forgetting, transfer, time.

    Raises ConfigError if the runs learned different streams: their averages could not be compared.
    """
    streams = {tuple(summary["stream"]) for summary in summaries}
    if len(streams) > 1:
        listed = "; ".join(" -> ".join(stream) for stream in sorted(streams))
        raise ConfigError(f"report: the runs learned different streams, which cannot stand in one table: {listed}")
    tasks = list(summaries[0]["stream"])
    header = ["variant", "seed", *tasks, "average", "forgetting", "backward transfer", "wall s"]
    rows = [
        [
            variant_of(summary),
            str(summary["seed"]),
            *(number(summary["final"]["0"][task]) for task in tasks),
            number(summary["average_accuracy"]["0"]),
            number(summary["forgetting"]["0"]),
            number(summary["backward_transfer"]["0"]),
            number(summary["wall_seconds"], 0),
        ]
        for summary in summaries
    ]
    return table(header, rows)


def run_report(run: RunDirectory) -> str:
    """Everything about one finished run."""
    summary, manifest = run.summary(), read_json(run.path / "manifest.json")
    title = f"{summary['name']}: {variant_of(summary)} on {' -> '.join(summary['stream'])}, seed {summary['seed']}"
    parts = [
        f"# {title}{scale_note(manifest)}",
        f"Made by `{manifest['command']}`. Scores are percentages.",
        comparison([summary]),
        *_losses(summary),
    ]
    if len(summary["score_matrix"]) > 1:
        parts += ["## Students beside each other", f"Who learns from whom: {graph(summary)}.", _beside(summary)]
    for student in summary["score_matrix"]:
        parts += [f"## Student {student}", _matrix(summary, student), _figures(summary, student)]
    parts += ["## Replay", _replay(summary)] if summary["replay"] else []
    parts += ["## Cost", _cost(summary), "## Configuration", _configuration(run, manifest)]
    return "\n\n".join(parts) + "\n"


def variant_of(summary: Mapping[str, Any]) -> str:
    """Name of the table row that a run belongs to. Runs made before there were variants have their method's."""
    return summary.get("variant") or summary["method"]


def scale_note(manifest: Mapping[str, Any]) -> str:
    """What a title has to say of a run that is a scaled-down trial of a protocol; nothing for one of full size."""
    scale = manifest.get("scale", 1.0)
    return "" if scale == 1 else f", scaled to {scale:g} of its examples and epochs"


def graph(summary: Mapping[str, Any]) -> str:
    """Who learns from whom in a run, in words. Runs made before it was a choice have their method's graph."""
    method = METHODS.get(summary["method"])
    return graph_in_words(summary.get("topology", method.topology if method else "unknown"), summary["peers"])


def traffic(exchange: Mapping[str, float]) -> list[list[str]]:
    """Rows of what is sent in a step; a figure that an older run does not have is left out."""
    return [[name, f"{exchange[key] / 1e6:.3f} MB"] for key, name in TRAFFIC.items() if key in exchange]


def number(value: float | None, digits: int = 1) -> str:
    """A figure, or a dash where it is not defined."""
    return "–" if value is None else f"{value:.{digits}f}"


def _matrix(summary: Mapping[str, Any], student: str) -> str:
    tasks = summary["stream"]
    rows = [
        [stage, *(number(score) for score in scores)]
        for stage, scores in zip(summary.get("stages", tasks), summary["score_matrix"][student], strict=True)
    ]
    return table(["after learning", *tasks], rows)


def _beside(summary: Mapping[str, Any]) -> str:
    """A row for each student: what it scores in the end, and its figures."""
    tasks = summary["stream"]
    rows = [
        [student, *(number(final[task]) for task in tasks), *(number(summary[name][student]) for name in FIGURES)]
        for student, final in summary["final"].items()
    ]
    return table(["student", *tasks, *(name.replace("_", " ") for name in FIGURES)], rows)


def _losses(summary: Mapping[str, Any]) -> list[str]:
    """Lines about students that died or hung, if any did."""
    lines = [
        f"- student {student} was lost ({how}); the others went on without it, each learning from the mean of those "
        "that were left."
        for student, how in summary.get("lost_students", {}).items()
    ]
    if summary.get("restarts"):
        lines.append(f"- learned again from the last checkpoint after a loss: {summary['restarts']} time(s).")
    return ["## Losses", "\n".join(lines)] if lines else []


def _figures(summary: Mapping[str, Any], student: str) -> str:
    return "; ".join(f"{name.replace('_', ' ')} {number(summary[name][student])}" for name in FIGURES) + "."


def _replay(summary: Mapping[str, Any]) -> str:
    rows = [
        [summary["stream"][int(stage)], str(counts["requested"]), str(counts["valid"]), str(counts["dropped"])]
        for stage, counts in summary["replay"].items()
    ]
    return table(["before learning", "requested", "valid", "dropped"], rows)


def _cost(summary: Mapping[str, Any]) -> str:
    exchange = summary["exchange"]
    rows = [
        ["wall time", f"{summary['wall_seconds']:.0f} s"],
        *traffic(exchange),
        ["time students wait for their teachers", f"{100 * exchange['wait_fraction']:.1f} %"],
        *([f"peak memory of {actor}", f"{peak / MIB:.0f} MiB"] for actor, peak in summary["peak_memory_bytes"].items()),
    ]
    return table(["what", "how much"], rows)


def _configuration(run: RunDirectory, manifest: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    config = (run.path / "config.yaml").read_text(encoding="utf-8").strip()
    cluster = (run.path / "cluster.yaml").read_text(encoding="utf-8").strip()
    return f"{versions}; {manifest['platform']}\n\n```yaml\n{config}\n```\n\n```yaml\n{cluster}\n```"
