"""The figure of finished runs, checked in matplotlib's objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from analysis.figures.heat_map import WHITE_FROM
from analysis.plot_runs import draw, main, read
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.report.finished_run import FinishedRun
from ray_l4.store.run_directory import RunDirectory

MATRIX = [[80.0, 1.5, None], [60.25, 70.0, 2.0], [40.0, 65.0, 90.0]]
TASKS = ("woz", "sql", "rest")


def summary(method: str = "l4", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the part of a run's summary.json that the figure reads, with a second student that it must ignore."""
    return {
        "method": method,
        "seed": seed,
        "peers": 2,
        "stream": list(TASKS),
        "score_matrix": {"0": MATRIX, "1": [[0.0] * 3] * 3},
        "average_accuracy": {"0": 65.0, "1": 0.0},
        "forgetting": {"0": 22.5, "1": 0.0},
    } | changes


def write_run(folder: Path, record: dict[str, Any] | None) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("name: run\n", encoding="utf-8")
    if record is not None:
        (folder / "summary.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def run(method: str = "l4", seed: int = 0, **changes: Any) -> FinishedRun:
    return FinishedRun(summary(method, seed, **changes), RunDirectory(Path("run")))


def drawn(runs: Sequence[FinishedRun]) -> tuple[list[Any], Any]:
    """Return the axes of the heat maps, and those of the bars."""
    pytest.importorskip("matplotlib")
    *maps, bars = draw(runs).axes
    return maps, bars


def test_runs_keep_their_order_and_those_with_one_label_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "b", summary()), write_run(tmp_path / "a", summary())]
    folders.append(write_run(tmp_path / "c", summary("lamol", 3)))
    maps, _ = drawn(read(folders))
    assert [axes.get_title() for axes in maps] == ["l4, seed 0 (b)", "l4, seed 0 (a)", "lamol, seed 3"]


def test_read_allows_another_order_of_the_same_tasks_but_not_other_tasks(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", summary())
    turned = write_run(tmp_path / "b", summary(stream=["rest", "woz", "sql"]))
    other = write_run(tmp_path / "c", summary(stream=["rest", "woz", "tv"]))
    assert read([first, turned])[1].tasks == ("rest", "woz", "sql")
    with pytest.raises(ConfigError, match="rest, sql, woz; rest, tv, woz"):
        read([first, other])


def test_a_heat_map_names_variant_and_stages() -> None:
    ((axes,), _) = drawn([run("multi-qa", variant="long", stages=["all"], score_matrix={"0": MATRIX[:1]})])
    assert axes.get_title() == "long, seed 0"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["after all"]


def test_read_refuses_an_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="did not finish"):
        read([write_run(tmp_path / "a", None)])


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


def test_main_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    folders = [write_run(tmp_path / name, summary(name)) for name in ("l4", "lamol")]
    out = tmp_path / "new" / "runs.png"
    assert main([*map(str, folders), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{out}\n"
    assert [path.name for path in out.parent.iterdir()] == ["runs.png"]  # nothing is left beside it


def test_main_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "x.png")]) == RunDirectoryError.exit_code
    assert capsys.readouterr().err == f"error: {tmp_path}: not a run directory (no config.yaml in it)\n"
