"""The charts, checked in the SVG that a reader gets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ray_l4.report.html import charts_cost, charts_scores, charts_steps, drawing
from ray_l4.report.html.blocks import Chart
from ray_l4.report.html.charts_cost import Span, without_pauses
from ray_l4.report.steps import COLUMNS, LATER_COLUMNS, Steps

SVG = "{http://www.w3.org/2000/svg}"
NAME = "own <b>&$x$\x07"
CURVES = {"woz": [(1.0, 20.0), (2.0, 40.0)], NAME: [(1.0, 0.0), (2.0, 90.0)]}
SPANS = {"woz": (0.0, 1.0), NAME: (1.0, 2.0)}


def tree(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(str(chart.svg))


def texts(chart: Chart) -> list[str]:
    return ["".join(element.itertext()).strip() for element in tree(chart).iter(f"{SVG}text")]


def steps_with(kd_qa: Sequence[float], kd_lm: Sequence[float]) -> Steps:
    count = len(kd_qa)
    columns = {name: np.ones(count) for name in (*COLUMNS, *LATER_COLUMNS)}
    columns |= {"student": np.zeros(count), "kd_qa": np.array(kd_qa), "kd_lm": np.array(kd_lm)}
    return Steps(columns, np.arange(count), [0, count])


STEPS = steps_with([1.0, 0.1, 0.0], [1.0, 0.5, 0.25])
MATRIX: list[list[float | None]] = [[80.0, None], [60.0, 70.0]]
PER_STUDENT = {"student 0": [1.0, None], "student 1": [0.0, -2.0]}
LANES = [Span("student 0", "training", 0.0, 60.0), Span("evaluator 0", "scoring", 30.0, 90.0)]
ONE_OF_EACH: dict[str, Callable[[], Chart]] = {
    "a": lambda: charts_scores.heat_map("a", "title", ["woz", NAME], ["woz", NAME], MATRIX),
    "b": lambda: charts_scores.learning_curves("b", "title", CURVES, SPANS),
    "c": lambda: charts_scores.grouped_bars("c", "title", ["woz", NAME], PER_STUDENT),
    "d": lambda: charts_steps.training("d", "title", STEPS, {"woz": (0, 3)}),
    "e": lambda: charts_steps.disagreement("e", "title", STEPS, {"woz": (0, 3)}),
    "f": lambda: charts_steps.exchange("f", "title", STEPS, {"woz": (0, 3)}),
    "g": lambda: charts_cost.timeline("g", "title", LANES),
    "h": lambda: charts_cost.stacked_bars("h", "title", ["student 0"], {"forward": [1.0], "wait": [2.0]}, "seconds"),
}


@pytest.fixture(scope="module", params=ONE_OF_EACH)
def chart(request: pytest.FixtureRequest) -> Chart:
    return ONE_OF_EACH[request.param]()


def test_a_figure_that_was_not_measured_has_no_panel() -> None:
    steps = steps_with([1.0], [1.0])
    both, sent = ["sent (MB)", "received (MB)", "waiting (%)"], ["sent (MB)", "waiting (%)"]
    for received, panels in ((np.ones(1), both), (np.full(1, np.nan), sent)):
        measured = replace(steps, columns={**steps.columns, "bytes_received": received})
        chart = charts_steps.exchange("f", "title", measured, {"woz": (0, 1)})
        assert [text for text in texts(chart) if text.endswith(")")] == panels


def test_a_drawing_stands_alone_in_a_page(chart: Chart) -> None:
    root = tree(chart)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(str(name).startswith(f"{chart.id}-") for name in ids)
    references = re.findall(r'(?:href="|url\()#([^")]+)', str(chart.svg))
    assert references
    assert set(references) <= set(ids)
    assert {"width", "height"}.isdisjoint(root.attrib)
    assert root.find(f".//{SVG}style") is None
    assert root.find(f".//{SVG}image") is None
    assert "http" not in re.sub(r' xmlns(:\w+)?="[^"]*"', "", str(chart.svg))


def test_a_drawing_can_be_heard_and_follows_the_page_s_colours(chart: Chart) -> None:
    root = tree(chart)
    assert root.get("role") == "img"
    title, alternative = root[0], root[1]
    assert root.get("aria-labelledby") == f"{title.get('id')} {alternative.get('id')}"
    assert title.text == "title"
    assert len(alternative.text or "") > 5
    fixed = set(re.findall(r"#[0-9a-f]{6}\b", str(chart.svg)))
    assert fixed.isdisjoint({drawing.INK, drawing.HEAT, *drawing.SERIES})
    assert "currentColor" in str(chart.svg)


def test_the_same_drawing_is_the_same_text(chart: Chart) -> None:
    assert ONE_OF_EACH[chart.id]() == chart


def test_names_are_shown_as_they_are_and_not_as_formulas_or_controls() -> None:
    found = texts(charts_scores.learning_curves("b", "title", CURVES, SPANS))
    assert found.count(r"own <b>&$x$\x07") == 2  # above its stage, and in the legend


def test_every_task_s_colour_of_the_style_sheet_has_a_twin_for_dark_pages() -> None:
    style = (Path(drawing.__file__).parent / "page.css").read_text(encoding="utf-8")
    light, dark = style.split("prefers-color-scheme: dark")
    for index, colour in enumerate(drawing.SERIES):
        assert f"--series-{index}: {colour};" in light
        assert re.search(rf"--series-{index}: #[0-9a-f]{{6}};", dark)


def test_the_heat_map_has_every_score_and_no_colour_where_there_is_none() -> None:
    chart = charts_scores.heat_map("a", "title", ["1", "2"], ["x", "y"], [[100.0, None], [0.0, 50.0]])
    assert [text for text in texts(chart) if text in ("100.0", "–", "0.0", "50.0")] == ["100.0", "–", "0.0", "50.0"]
    opacity = [float(value) for value in re.findall(r"var\(--heat\); (?:fill-)?opacity: ([\d.]+)", str(chart.svg))]
    assert opacity == [0.6, 0.3]  # what is nearly nothing is not even drawn


def test_bars_say_their_values_and_a_dash_where_there_is_none() -> None:
    chart = charts_scores.grouped_bars("c", "title", ["x", "y"], {"a": [12.3, None], "b": [0.0, -2.0]})
    assert {"12.3", "–", "0.0", "-2.0", "x", "y", "a", "b"} <= set(texts(chart))
    assert tree(chart)[1].text == "x: a 12.3, b 0.0; y: a –, b -2.0"


def test_bars_of_nothing_start_at_the_left_edge() -> None:
    found = texts(charts_scores.grouped_bars("c", "title", ["x"], {"a": [0.0], "b": [None]}))
    assert {"0.0", "1.0"} <= set(found)
    assert not any(text.startswith("−") for text in found)


def heights(chart: Chart) -> list[float]:
    """Return vertical positions of the first line of series 0, as drawn: smaller is higher."""
    lines = [e for e in tree(chart).iter(f"{SVG}path") if "stroke: var(--series-0)" in e.get("style", "")]
    return [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", lines[0].get("d", ""))]


def test_collapse_is_visible_each_decade_has_the_same_height_and_zero_lies_below_all() -> None:
    chart = charts_steps.disagreement("e", "t", steps_with([1.0, 1e-2, 1e-4, 0.0], [1.0] * 4), {"woz": (0, 4)})
    first, second, third, zero = heights(chart)
    assert second - first == pytest.approx(third - second, rel=1e-3)
    assert zero > third + (second - first) / 4
    assert "0" in texts(chart)


@pytest.mark.parametrize(
    "values", [[0.0] * 4, [0.02, 0.05, 0.03], [3.0, 3.0], [1.0, 1e-9, 0.0], [1.0, 1e-9], [0.0, 3.3], [1.0, -1e-9]]
)
def test_the_axis_of_disagreement_always_has_numbers(values: list[float]) -> None:
    chart = charts_steps.disagreement("e", "t", steps_with(values, [np.nan] * len(values)), {"woz": (0, len(values))})
    assert "answers" in texts(chart)
    assert "whole text" not in texts(chart)  # it has no figures
    axis = next(e for e in tree(chart).iter(f"{SVG}g") if e.get("id") == "e-matplotlib.axis_4")
    numbers = [text for text in ("".join(e.itertext()).strip() for e in axis.iter(f"{SVG}text")) if text[0].isdigit()]
    assert 1 <= len(numbers) <= 10
    assert ("0" in numbers) == (min(values) <= 0)


def test_pauses_of_an_interrupted_run_are_left_out_of_the_timeline() -> None:
    spans = [Span("b", "x", 5000.0, 5010.0), Span("a", "x", 0.0, 100.0), Span("b", "x", 90.0, 120.0)]
    moved, seams = without_pauses(spans)
    assert moved == [Span("b", "x", 120.0, 130.0), Span("a", "x", 0.0, 100.0), Span("b", "x", 90.0, 120.0)]
    assert seams == [120.0]
    assert charts_cost.timeline("g", "t", spans).caption == charts_cost.SEAMS
    assert without_pauses(spans[1:]) == (spans[1:], [])
