"""Every metric against figures of the references' own code, and the table of them in docs/FIDELITY.md.

``reference_cases.json`` holds the cases: the figures are what Perl ROUGE-1.5.5 and L2KD's ``metrics.py`` gave for the
items. ``ours`` and ``differs`` are there where this project differs on purpose: its figures, and why. To print the
table of the page: ``python tests/metrics/test_metrics_reference_cases.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_l4.metrics.registry import METRICS, Item, score

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("reference_cases.json").read_text(encoding="utf-8"))
PAGE = Path(__file__).parents[2] / "docs" / "FIDELITY.md"
SHOWN = {
    "avg_rouge": ("rouge1", "rouge2", "rougeL", "avg_rouge"),
    "em": ("em", "nem", "nf1"),
    "joint_goal_em": ("joint_goal_em", "turn_goal_em", "turn_request_em", "avg_dialogue"),
    "lfem": ("lfem",),
}
"""Metric of a case -> the figures that the table shows, in this order. ``em``, ``nem`` and ``nf1`` are one family."""


def scored(case: dict[str, Any]) -> dict[str, float]:
    items = [
        Item(item["prediction"], tuple(item["references"]), item.get("sample_id", "0"), item.get("meta", ""))
        for item in case["items"]
    ]
    return score(case["metric"], items)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['metric']}: {case['case']}")
def test_the_figures_of_a_reference(case: dict[str, Any]) -> None:
    values = scored(case)
    expected = case["figures"] | case.get("ours", {})
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=0.002)
    assert ("ours" in case) == ("differs" in case), "a difference is explained, and there is one to explain"
    for name, ours in case.get("ours", {}).items():
        assert ours != pytest.approx(case["figures"][name], abs=0.002)


def test_every_metric_has_cases() -> None:
    measured = {name for case in CASES for name in (case["metric"], *case["figures"])}
    assert set(METRICS) <= measured
    assert all(set(SHOWN[case["metric"]]) == set(case["figures"]) for case in CASES)


def table() -> list[str]:
    """Return the rows of the table of docs/FIDELITY.md."""
    lines = ["| metric | case | reference | here | if they differ: why |", "| --- | --- | ---: | ---: | --- |"]
    for case in CASES:
        names = SHOWN[case["metric"]]
        theirs = " / ".join(f"{case['figures'][name]:.3f}" for name in names)
        ours = " / ".join(f"{(case['figures'] | case['ours'])[name]:.3f}" for name in names) if "ours" in case else "="
        shown = "em, nem, nf1" if case["metric"] == "em" else case["metric"]
        lines.append(f"| {shown} | {case['case']} | {theirs} | {ours} | {case.get('differs', '')} |")
    return lines


def test_the_page_shows_these_cases() -> None:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    start = page.index(table()[0])
    shown = page[start : page.index("", start)]
    assert shown == table(), "replace the table by the output of this file, run as a program"


if __name__ == "__main__":
    print("\n".join(table()))
