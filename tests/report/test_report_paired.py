"""Paired differences: which runs are a pair, what is said of them, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.report.aggregate import AVERAGE, FORGETTING, OVER_EPOCHS
from ray_l4.report.paired import BETTER, NOT_SHOWN, WORSE, Difference, PairedRow, compare
from ray_l4.report.paired_text import csv_lines, header_and_rows, notes, paired_markdown, signed, title
from ray_l4.report.run_result import RunResult

AB, BA = ["a", "b"], ["b", "a"]


def run(method: str, seed: int, average: float | None, forgetting: float | None = 0.0, **changes: Any) -> RunResult:
    """Return a result with all that a comparison reads."""
    summary = {"method": method, "stream": AB, "peers": 1, "seed": seed, "wall_seconds": 60.0}
    figures = {"average_accuracy": {"0": average}, "forgetting": {"0": forgetting}}
    return RunResult(summary | figures | changes)


def row(runs: Sequence[RunResult], label: str = "l4", **choices: Any) -> PairedRow:
    return next(row for row in compare(runs, "lamol", **choices).rows if row.label == label)


def differences(row: PairedRow, column: str = AVERAGE) -> tuple[float, ...]:
    found = row.differences[column]
    return found.values if found else ()


def test_a_pair_is_the_same_order_and_seed() -> None:
    runs = [
        *(run("lamol", 0, 50.0), run("lamol", 1, 60.0), run("lamol", 0, 70.0, stream=BA), run("lamol", 7, 0.0)),
        *(run("l4", 1, 61.0), run("l4", 0, 73.0, stream=BA), run("l4", 0, 52.0), run("l4", 8, 0.0)),
    ]
    found = row(runs)
    assert (found.pairs, sorted(differences(found)), found.by_seed) == (3, [1.0, 2.0, 3.0], False)
    assert compare(runs, "lamol").orders == 2


def test_a_method_without_order_counts_once_for_each_seed() -> None:
    runs = [run("lamol", seed, 50.0 + seed, stream=stream) for seed in (0, 1) for stream in (AB, BA)]
    runs += [run("lamol", 2, 40.0), run("lamol", 2, 50.0, stream=BA)]
    runs += [run("multi-qa", seed, 60.0, None) for seed in range(3)]
    found = row(runs, "multi-qa")
    assert (found.pairs, differences(found), found.by_seed) == (3, (10.0, 9.0, 15.0), True)
    assert found.differences[FORGETTING] is None
    (turned,) = compare(runs, "multi-qa").rows  # the reference may be the one without order
    assert (turned.label, differences(turned), turned.by_seed) == ("lamol", (-10.0, -9.0, -15.0), True)


def test_two_methods_without_order_pair_by_seed() -> None:
    found = compare([run("multi-qa", 0, 60.0), run("single-qa", 0, 70.0, stream=BA)], "multi-qa")
    assert (found.rows[0].pairs, found.rows[0].by_seed, found.orders) == (1, False, 0)
    assert title(found) == "Paired differences to multi-qa"


@pytest.mark.parametrize(
    ("values", "lower_is_better", "verdict"),
    [
        ([1.0, 2.0, 3.0], False, BETTER),
        ([1.0, 2.0, 3.0], True, WORSE),
        ([-1.0, -2.0, -3.0], False, WORSE),
        ([-1.0, -2.0, -3.0], True, BETTER),
        ([-1.0, 2.0, 3.0], False, NOT_SHOWN),
        ([0.0, 0.0, 0.0], False, NOT_SHOWN),
        ([0.0, 1.0, 2.0], True, NOT_SHOWN),  # 0 is the end of the interval, and so within it
        ([9.0, 9.0], False, None),
    ],
)
def test_what_is_said_in_words(values: list[float], lower_is_better: bool, verdict: str | None) -> None:
    assert Difference(tuple(values), lower_is_better).verdict == verdict


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=6))
def test_who_is_the_reference_only_turns_the_sign(scores: list[tuple[float, float]]) -> None:
    runs = [
        run(name, seed, pair[index], pair[index])
        for index, name in enumerate(("lamol", "l4"))
        for seed, pair in enumerate(scores)
    ]
    (one,), (other,) = compare(runs, "lamol").rows, compare(runs, "l4").rows
    for column in (AVERAGE, FORGETTING):
        mine, theirs = one.differences[column], other.differences[column]
        assert mine and theirs and mine.values == tuple(-value for value in theirs.values)
        turned = {BETTER: WORSE, WORSE: BETTER}
        said = theirs.verdict
        assert mine.verdict == (turned.get(said, said) if said else None)


def test_rounding_decides_no_verdict() -> None:
    runs = [run("lamol", seed, 0.3) for seed in range(3)] + [run("l4", seed, 0.1 + 0.2) for seed in range(3)]
    found = row(runs).differences[AVERAGE]
    assert 0.1 + 0.2 > 0.3 and found and (found.values, found.verdict) == ((0.0,) * 3, NOT_SHOWN)


def test_a_score_that_is_missing_leaves_its_pair_out_of_that_column_only() -> None:
    runs = [run("lamol", seed, 50.0, 10.0) for seed in range(4)]
    runs += [run("l4", seed, 52.0 if seed else None, 9.0) for seed in range(4)]
    found = row(runs)
    assert (found.pairs, len(differences(found)), len(differences(found, FORGETTING))) == (4, 3, 4)
    assert header_and_rows(compare(runs, "lamol"))[1][0][2] == "+2.00 (n = 3)"


def test_students_together_are_compared_with_one_student_of_the_reference() -> None:
    peers = {"peers": 2, "average_accuracy": {"0": 50.0, "1": 54.0}, "forgetting": {"0": 6.0, "1": 8.0}}
    together = {"average_accuracy": 57.0, "forgetting": 5.0}
    runs = [
        RunResult(run("l4", seed, 0.0, variant=variant, together=together).summary | peers)
        for variant in ("lamol", "l4")
        for seed in (0, 1)
    ]
    runs += [run("ewc", seed, 40.0) for seed in (0, 1)]
    found = compare(runs, "lamol").rows
    assert [(row.variant, row.label) for row in found] == [
        ("lamol", "lamol, together"),
        ("l4", "l4"),
        ("l4", "l4, together"),
        ("ewc", "ewc"),
    ]
    assert [differences(row) for row in found] == [(7.0, 7.0), (0.0, 0.0), (7.0, 7.0), (-10.0, -10.0)]
    assert differences(found[2], FORGETTING) == (-1.0, -1.0)
    (first, *_) = compare(runs, "lamol", student=1).rows
    assert differences(first) == (3.0, 3.0)


def test_the_cost_is_the_median_of_the_ratios() -> None:
    runs = [run("lamol", seed, 50.0, wall_seconds=10.0 * (seed + 1)) for seed in range(3)]
    runs += [run("l4", seed, 50.0, wall_seconds=seconds) for seed, seconds in enumerate((20.0, 30.0, 300.0))]
    assert row(runs).time_ratio == 2.0  # of 2, 1.5 and 10
    assert row([run("lamol", 0, 1.0, wall_seconds=0.0), run("l4", 0, 1.0)]).time_ratio is None


def test_another_student_and_the_forgetting_over_epochs() -> None:
    students = {"peers": 2, "average_accuracy": {"0": 50.0, "1": 55.0}, "forgetting_over_epochs": {"1": 4.0}}
    runs = [run("lamol", 0, 0.0, **students), run("l4", 0, 0.0, **(students | {"average_accuracy": {"1": 58.0}}))]
    runs.append(run("ewc", 0, 99.0))  # has no student 1
    found = row(runs, student=1, forgetting=OVER_EPOCHS)
    assert (differences(found), differences(found, OVER_EPOCHS)) == ((3.0,), (0.0,))
    assert row(runs, "ewc", student=1).pairs == 0


def test_markdown_as_a_person_sees_it() -> None:
    runs = [run("lamol", seed, 50.0, 10.0, stream=stream) for seed in range(2) for stream in (AB, BA)]
    runs += [run("l4", s, 51.0 + s, 10.5 - s, stream=stream, wall_seconds=90) for s in range(2) for stream in (AB, BA)]
    runs += [run("multi-qa", seed, 50.0, None) for seed in range(2)]
    assert paired_markdown(compare(runs, "lamol")).split("\n") == [
        "Paired differences to lamol, over all orders together (2):",
        "",
        "| variant  | pairs | average |  95 % interval | average is | forgetting |  95 % interval "
        "|       forgetting is | time ratio |",
        "| -------- | ----: | ------: | -------------: | ---------: | ---------: | -------------: "
        "| ------------------: | ---------: |",
        "| l4       |     4 |   +1.50 | +1.00 to +2.00 |     better |       0.00 | -0.50 to +0.50 "
        "| no difference shown |       1.50 |",
        "| multi-qa |     2 |    0.00 |              – |          – |          – |              – "
        "|                   – |       1.00 |",
        "",
        "- A pair is a run of the variant and one of lamol with the same order and seed; a difference is the variant's "
        "value minus the other. Time: median of the ratios.",
        "- Interval: bootstrap over the pairs, too narrow where there are few; none for fewer than 3.",
        "- Paired by seed, since one of the two has no order, and the other counts with its mean over the orders: "
        "multi-qa.",
    ]


def test_without_a_run_of_the_reference_or_of_another_variant() -> None:
    absent = compare([run("l4", 0, 50.0)], "lamol")
    assert header_and_rows(absent) == (["variant", "pairs", "time ratio"], [["l4", "0", "–"]])
    assert notes(absent)[0] == "No finished run of lamol can be paired."
    alone = paired_markdown(compare([run("lamol", 0, 50.0)], "lamol"))
    assert alone == "Paired differences to lamol:\n\n- There is no variant but lamol."


def test_csv_has_full_precision() -> None:
    runs = [run(name, seed, 50.0 + value * seed / 3) for name, value in (("lamol", 0), ("l4", 1)) for seed in range(3)]
    average, forgetting, time = csv_lines(compare(runs, "lamol"))
    block = "paired differences to lamol"
    assert average == [
        block,
        "l4",
        AVERAGE,
        pytest.approx(1 / 3),
        None,
        3,
        None,
        None,
        0.0,
        pytest.approx(2 / 3),
        NOT_SHOWN,
    ]
    assert forgetting[2:4] == [FORGETTING, 0.0]
    assert time == [block, "l4", "time ratio", 1.0, None, 3, *[None] * 5]


def test_a_sign_for_all_but_zero() -> None:
    assert [signed(value) for value in (1.234, -0.5, 0.001, -0.001)] == ["+1.23", "-0.50", "0.00", "0.00"]
