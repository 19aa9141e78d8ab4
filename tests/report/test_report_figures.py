"""Every kind of figure, checked in matplotlib's objects; nothing is cut off or hidden."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.report.finished_runs import TASKS, fading, write_run, write_sweep

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ray_l4.errors import ConfigError, RayL4Error
from ray_l4.report.aggregate import Statistic
from ray_l4.report.figures import (
    cost_bars,
    differences,
    disagreement,
    forgetting_bars,
    heat_map,
    lambda_curve,
    learning_curves,
    style,
)
from ray_l4.report.figures.kinds import KINDS, draw, known_kind
from ray_l4.report.results import Results, load

ORDER = " -> ".join(TASKS)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two seeds of l4, l2kd-word with teachers and finetune, a multitask run, and another order."""
    folder = tmp_path_factory.mktemp("sweep")

    def worse(stage: int, epoch: int, student: int, task: str) -> float:
        return fading(stage, epoch, student, task) / 2

    trials: dict[str, dict[str, Any]] = {
        "l4-0": {"method": "l4"},
        "l4-1": {"method": "l4", "seed": 1, "score": lambda *cell: fading(*cell) - 4.0},
        "word": {"method": "l2kd-word", "seconds": 1800},
        "finetune": {"method": "finetune", "score": worse},
        "multi": {"method": "multi-qa", "score": lambda *cell: 75.0},
        "turned": {"method": "l4", "stream": TASKS[::-1]},
    }
    write_sweep(folder, trials, "l4-table1", 0.25, against="l4")
    write_run(folder / "word" / "teachers", "single-qa-lm", seconds=900)
    return load([folder])


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def parts(figure: Figure) -> list[list[Any]]:
    return [part.axes for part in figure.subfigs]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lambda"])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_every_kind_is_written_and_says_its_scale(results: Results, tmp_path: Path, kind: str, suffix: str) -> None:
    figure = draw(kind, results, 0)
    assert "scaled to 0.25" in figure.get_suptitle().replace("\n", " ")
    assert "seeds: 0, 1" in figure.get_suptitle().replace("\n", " ")
    out = tmp_path / f"figure.{suffix}"
    style.save(figure, out)
    assert out.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lambda"])
def test_nothing_is_cut_and_the_legend_hides_nothing(results: Results, kind: str) -> None:
    figure = draw(kind, results, 0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    titles = [part._suptitle for part in [figure, *figure.subfigs] if part._suptitle]
    drawn = [axes.get_tightbbox(renderer) for axes in figure.axes]
    for box in [*drawn, *(title.get_window_extent(renderer) for title in titles)]:
        assert box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
    for legend in figure.legends:
        assert not any(legend.get_window_extent(renderer).overlaps(box) for box in drawn)


def test_learning_curves_hold_means_and_bands_of_every_epoch(results: Results) -> None:
    figure = learning_curves.draw(results, 0)
    first, second = parts(figure)
    assert [axes.get_title() for axes in first] == list(TASKS)
    curves = lines(first[0])
    assert list(curves) == ["l4", "l2kd-word", "finetune"]
    assert curves["l4"].get_xdata().tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert curves["l4"].get_ydata().tolist() == [73.0, 78.0, 63.0 + 5.0, 68.0, 58.0, 58.0]
    band = first[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((58.0 - 8**0.5, 78.0 + 8**0.5))
    assert list(lines(second[0])) == ["l4"]  # the other order has no other variant
    assert [label.get_text() for label in second[0].get_xticklabels()] == list(TASKS[::-1])
    low, high = first[0].get_ylim()
    assert low == 0 and high >= 80  # all panels of a row share an axis that holds the highest of them


def test_a_variant_looks_alike_everywhere_and_no_two_look_alike() -> None:
    names = ["l4", "lamol", *(f"other {index}" for index in range(20))]
    found = style.styles(names)
    assert len(set(found.values())) == len(names)
    assert style.styles(["x", "lamol"])["lamol"] == found["lamol"]
    with pytest.raises(ConfigError, match="28 distinct styles"):
        style.styles(map(str, range(29)))


def test_heat_maps_hold_means_and_deviations(results: Results) -> None:
    figure = heat_map.draw(results, 0)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        *(f"{name}\n{ORDER}" for name in ("l4", "l2kd-word", "finetune")),
        "multi-qa\nin no order",
        f"l4\n{' -> '.join(TASKS[::-1])}",
    ]
    l4, _, _, multi, _ = figure.axes
    assert l4.texts[0].get_text() == "78.0\n±2.8"
    assert [text.get_text() for text in multi.texts] == ["75.0"] * 3
    assert [label.get_text() for label in multi.get_yticklabels()] == ["after all"]


def test_a_score_that_is_not_there_is_a_dash_on_white(tmp_path: Path) -> None:
    alone = write_run(tmp_path / "a", "single-qa", score=lambda s, e, p, task: 50.0 if TASKS[s] == task else None)
    (axes,) = heat_map.draw(load([alone]), 0).axes
    assert [text.get_text() for text in axes.texts] == ["50.0", "–", "–", "–", "50.0", "–", "–", "–", "50.0"]
    assert axes.get_images()[0].get_array().mask.sum() == 6


def test_forgetting_bars(results: Results) -> None:
    figure = forgetting_bars.draw(results, 0)
    (axes,), _ = parts(figure)
    bars = {one.get_label(): one for one in axes.containers if hasattr(one, "patches")}
    heights = {label: [bar.get_height() for bar in one] for label, one in bars.items()}
    assert heights == {"l4": [20.0, 10.0, 15.0], "l2kd-word": [20.0, 10.0, 15.0], "finetune": [10.0, 5.0, 7.5]}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["woz.en", "wikisql", "mean of these"]
    assert to_hex(bars["l4"].patches[0].get_facecolor()) == style.BLUE.lower()


def test_disagreement_is_averaged_over_parts_of_an_epoch(results: Results) -> None:
    (answer, everything), _ = parts(disagreement.draw(results, 0))
    curves = lines(answer)
    assert list(curves) == ["l4", "l2kd-word"]  # finetune has no one to disagree with
    assert curves["l4"].get_ydata().tolist() == pytest.approx([0.1, 0.05, 0.1 / 3, 0.025] * 6)
    assert answer.get_yscale() == everything.get_yscale() == "log"
    assert answer.get_ylim()[0] == pytest.approx(0.01)  # no decade for zero where there is none


def test_the_parts_of_an_epoch_hold_every_step_once(tmp_path: Path) -> None:
    run = load([write_run(tmp_path / "a", epochs=30, score=lambda *cell: None)]).runs[0]
    found = disagreement.course(run, "kd_qa")
    assert len(found) == 3 * 30 * 2  # two parts of two steps in each epoch
    assert list(found)[:2] == pytest.approx([0.25 / 30, 0.75 / 30], abs=1e-6)
    assert list(found.values())[:2] == pytest.approx([0.075, (0.1 / 3 + 0.025) / 2])


def test_collapse_of_a_single_run_is_seen(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", seed=1, divergence=lambda stage, epoch, step: 0.0 if stage == 2 else 0.1),
    ]
    figure = disagreement.draw(load(folders), 0)
    ((axes, _),) = parts(figure)
    marks = [one for one in axes.collections if type(one).__name__ == "PathCollection"]
    places = marks[0].get_offsets()
    assert places[:, 0].min() > 2 and len(places) >= 8  # along the third task
    assert set(places[:, 1]) == {axes.get_ylim()[0]}  # at the bottom
    assert "0" in [label.get_text() for label in axes.get_yticklabels()]
    assert disagreement.COLLAPSE in [text.get_text() for text in figure.legends[0].get_texts()]


def test_runs_that_always_agree_are_all_at_the_bottom(tmp_path: Path) -> None:
    figure = disagreement.draw(load([write_run(tmp_path / "a", divergence=lambda *place: 0.0)]), 0)
    ((axes, _),) = parts(figure)
    assert set(lines(axes)["l4"].get_ydata()) == {axes.get_ylim()[0]}


def test_the_share_of_the_teachers_is_hatched_within_the_bar(results: Results) -> None:
    memory, hours = cost_bars.draw(results, 0).axes
    assert [label.get_text() for label in memory.get_yticklabels()] == ["l4", "l2kd-word", "finetune", "multi-qa"]
    widths = [bar.get_width() for bar in hours.patches]
    assert widths == [1.0, 0.5, 1.0, 1.0, 0.25]  # the last one: the teachers' share of l2kd-word
    bar, share = hours.patches[1], hours.patches[4]
    assert (share.get_x(), share.get_y(), share.get_height()) == (0, bar.get_y(), bar.get_height())
    assert [bar.get_hatch() for bar in hours.patches] == [None] * 4 + ["////"]
    assert [bar.get_width() for bar in memory.patches] == [4.0, 2.0, 2.0, 2.0]


def test_lambda_curve_is_drawn_over_the_weight(tmp_path: Path) -> None:
    def run(weight: float, seed: int) -> Path:
        return write_run(
            tmp_path / f"{weight}-{seed}",
            seed=seed,
            variant=f"lambda {weight}",
            distillation={"weight": weight},
            score=lambda stage, epoch, student, task: 50.0 + 10 * weight + 2 * seed,
        )

    others = [write_run(tmp_path / "word", "l2kd-word"), write_run(tmp_path / "lamol", "lamol")]  # do not matter
    results = load([*others, *(run(weight, seed) for weight in (1.0, 0.0, 0.5) for seed in (0, 1))])
    ((axes,),) = parts(lambda_curve.draw(results, 0))
    assert list(lines(axes)) == [*TASKS, "average"]
    assert lines(axes)["average"].get_xdata().tolist() == [0.0, 0.5, 1.0]
    assert lines(axes)["average"].get_ydata().tolist() == [51.0, 56.0, 61.0]
    assert lambda_curve.curve(results.runs[2:], "average", 0)[0] == (0.0, Statistic(51.0, pytest.approx(2**0.5), 2))


def test_figures_that_cannot_be_drawn_say_why(tmp_path: Path, results: Results) -> None:
    multi = load([write_run(tmp_path / "a", "multi-qa")])
    for drawer, message in (
        (lambda_curve.draw, r"differ in distillation\.weight.*methods here: none"),
        (learning_curves.draw, "one task after another"),
        (forgetting_bars.draw, "at least two tasks"),
        (disagreement.draw, "have no peers or teachers"),
    ):
        with pytest.raises(ConfigError, match=message):
            drawer(multi, 0)


def test_the_same_figure_is_the_same_file(results: Results, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        style.save(cost_bars.draw(results, 0), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_save_refuses_a_format_it_does_not_know_and_a_place_it_cannot_write(tmp_path: Path) -> None:
    figure = style.new_figure(2, 2, "title", "")
    with pytest.raises(ConfigError, match=r"unknown format 'doc'.* png"):
        style.save(figure, tmp_path / "x.doc")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be written"):
        style.save(figure, tmp_path / "file" / "x.png")


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RayL4Error, match=r"pip install matplotlib"):
        style.new_figure(2, 2, "title", "")


def test_an_unknown_kind_or_student_is_refused(results: Results) -> None:
    with pytest.raises(ConfigError, match=r"--kind lamda: .*'lambda'"):
        known_kind("lamda")
    with pytest.raises(ConfigError, match="--student 7: no run has this student"):
        draw("cost", results, 7)


def test_bars_of_forgetting_say_from_where_the_best_score_is_taken(results: Results) -> None:
    over = Results(results.runs, results.tasks, results.found, over_epochs=True)
    titles = [draw("forgetting", one, 0).get_suptitle().replace("\n", " ") for one in (results, over)]
    assert ["after any task" in titles[0], "after any epoch" in titles[1]] == [True, True]


def test_differences_are_means_with_intervals_around_a_line_at_zero(tmp_path: Path) -> None:
    gains = {"lamol": (0.0, 0.0, 0.0), "l4": (4.0, 5.0, 9.0), "finetune": (-1.0, 0.0, 1.0), "multi-qa": (3.0, 3.0)}
    trials: dict[str, dict[str, Any]] = {
        f"{method}-{seed}": {
            "method": method,
            "seed": seed,
            "score": lambda stage, epoch, student, task, gain=gain: 50.0 + gain - (TASKS[0] == task) * gain * stage,
        }
        for method, of_method in gains.items()
        for seed, gain in enumerate(of_method)
    }
    figure = differences.draw(load([write_sweep(tmp_path / "s", trials, against="lamol")]), 0)
    average, drop = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["average", "forgetting"]
    names = ["l4 (3 pairs)", "finetune (3 pairs)", "multi-qa (2 pairs)"]
    assert [label.get_text() for label in average.get_yticklabels()] == names
    drawn = [line for line in average.get_lines() if len(line.get_xdata())]
    assert drawn[0].get_xdata() == [0, 0]
    # The first task loses twice the gain in the end, so that the average gains a third of it.
    assert list(drawn[1].get_xdata()) == pytest.approx([4 / 3, 3.0])
    assert [drawn[2].get_xdata()[0], drawn[2].get_ydata()[0]] == [2.0, 0]
    looks = [line.get_label() for line in average.get_lines() if not line.get_label().startswith("_")]
    assert looks == [differences.SHOWN, differences.OPEN, differences.FEW]
    assert [text.get_text() for text in average.texts] == ["+2.00", "0.00", "+3.00"]
    assert [text.get_text() for text in drop.texts] == ["+6.00", "+0.33"], "no forgetting without an order"
    assert ["right" in axes.get_xlabel() for axes in figure.axes] == [True, False]


def test_differences_say_what_is_missing(tmp_path: Path) -> None:
    alone = write_run(tmp_path / "a", "lamol")
    with pytest.raises(ConfigError, match=r"--against VARIANT, or sweep.against .*Variants here: lamol"):
        differences.draw(load([alone]), 0)
    other = write_run(tmp_path / "b", "l4", seed=1)
    with pytest.raises(ConfigError, match="runs of lamol and of another variant with the same seed"):
        differences.draw(load([alone, other], against="lamol"), 0)
