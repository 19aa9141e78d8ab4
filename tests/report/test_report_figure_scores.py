"""The figure of finished runs, checked in matplotlib's objects."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.report.figures.heat_map import WHITE_FROM
from ray_l4.report.figures.scores import draw
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.results import Results
from ray_l4.store.run_directory import RunDirectory

MATRIX = [[80.0, 1.5, None], [60.25, 70.0, 2.0], [40.0, 65.0, 90.0]]
TASKS = ("woz", "sql", "rest")
EXPERIMENT = ExperimentConfig.model_validate(
    {"method": "l4", "stream": ["woz.en", "wikisql"], "model": {"from_scratch": {}}}
)


def summary(method: str = "l4", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the part of a run's summary.json that the figure reads, with a second student that it must ignore."""
    return {
        "method": method,
        "seed": seed,
        "peers": 2,
        "stream": list(TASKS),
        "score_matrix": {"0": MATRIX, "1": [[0.0] * 3] * 3},
        "final": {"0": dict(zip(TASKS, MATRIX[-1], strict=True)), "1": dict.fromkeys(TASKS, 0.0)},
        "average_accuracy": {"0": 65.0, "1": 0.0},
        "forgetting": {"0": 22.5, "1": 0.0},
    } | changes


def run(method: str = "l4", seed: int = 0, **changes: Any) -> FinishedRun:
    found = FinishedRun(summary(method, seed, **changes), RunDirectory(Path("run")))
    found.__dict__.update(experiment=EXPERIMENT, manifest={})  # which an open run reads from its directory
    return found


def drawn(runs: Sequence[FinishedRun]) -> tuple[list[Any], Any]:
    """Return the axes of the heat maps, and those of the bars."""
    pytest.importorskip("matplotlib")
    *maps, bars = draw(Results(tuple(runs), TASKS), 0).axes
    return maps, bars


def test_runs_keep_their_order_and_those_without_the_student_are_left_out() -> None:
    runs = (run("lamol", 3), run("finetune", peers=1), run())
    *maps, _ = draw(Results(runs, TASKS), 1).axes
    assert [axes.get_title() for axes in maps] == ["lamol, seed 3", "l4, seed 0"]
    assert maps[0].texts[0].get_text() == "0.0"


def test_forgetting_over_epochs_has_its_own_name_and_value() -> None:
    results = Results((run(forgetting_over_epochs={"0": 30.0}), run(seed=1)), TASKS, over_epochs=True)
    *_, axes = draw(results, 0).axes
    assert [text.get_text() for text in axes.texts] == ["65.0", "65.0", "30.0", "–"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["average score", "forgetting over epochs"]


def test_a_heat_map_names_variant_and_stages() -> None:
    ((axes,), _) = drawn([run("multi-qa", variant="long", stages=["all"], score_matrix={"0": MATRIX[:1]})])
    assert axes.get_title() == "long, seed 0"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["after all"]


def test_heat_map_holds_every_score_at_its_place() -> None:
    ((axes,), _) = drawn([run()])
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    printed = [["80.0", "1.5", "–"], ["60.2", "70.0", "2.0"], ["40.0", "65.0", "90.0"]]
    assert shown == {(column, row): printed[row][column] for row in range(3) for column in range(3)}
    image = axes.get_images()[0].get_array()
    assert image.shape == (3, 3)
    assert image.mask.tolist() == [[False, False, True], [False] * 3, [False] * 3]
    assert image[1].tolist() == MATRIX[1]
    assert axes.get_images()[0].get_clim() == (0, 100)  # one scale for all runs
    assert axes.get_title() == "l4, seed 0"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["woz", "sql", "rest"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["after woz", "after sql", "after rest"]


def luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance of an sRGB colour, as WCAG 2 defines it."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_number_can_be_read_on_its_cell() -> None:
    values = [*range(101), WHITE_FROM - 0.01, *[WHITE_FROM] * 19]
    rows = tuple(tuple(float(value) for value in values[start : start + 11]) for start in range(0, 121, 11))
    ((axes,), _) = drawn([run(stream=list("abcdefghijk"), score_matrix={"0": rows})])
    image = axes.get_images()[0]
    for text in axes.texts:
        column, row = text.get_position()
        cell = luminance(image.cmap(image.norm(rows[row][column]))[:3])
        number = {"white": 1.0, "black": 0.0}[text.get_color()]
        contrast = (max(cell, number) + 0.05) / (min(cell, number) + 0.05)
        assert contrast >= 4.5, rows[row][column]  # WCAG 2, level AA


def test_bars_hold_average_and_forgetting_of_every_run() -> None:
    _, axes = drawn([run(), run("finetune", forgetting={"0": None})])
    average, forgetting = axes.containers
    assert [bar.get_height() for bar in average] == [65.0, 65.0]
    assert [bar.get_height() for bar in forgetting] == [22.5, 0.0]
    assert [text.get_text() for text in axes.texts] == ["65.0", "65.0", "22.5", "–"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["l4\nseed 0", "finetune\nseed 0"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["average score", "forgetting"]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in [*average, *forgetting])
    assert all(end < start for (_, end), (start, _) in pairwise(edges))  # none hides another


@pytest.mark.parametrize("count", range(1, 7))
def test_one_heat_map_for_each_of_1_to_6_runs(count: int) -> None:
    maps, axes = drawn([run(seed=seed) for seed in range(count)])
    assert [heat_map.get_title() for heat_map in maps] == [f"l4, seed {seed}" for seed in range(count)]
    assert all(len(heat_map.texts) == 9 for heat_map in maps)
    assert len(axes.containers[0]) == count
