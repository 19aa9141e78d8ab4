"""The search for a layout finds one if, and only if, there is one."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.cluster.bin_packing import Counts, assign

Amounts = dict[str, float]


@pytest.mark.parametrize(
    ("students", "share", "evaluators", "other", "gpus", "fits"),
    [
        (2, 0.7, 1, 0.6, 2, False),  # 2.0 in total
        (2, 0.7, 1, 0.3, 2, True),
        (2, 0.7, 2, 0.3, 2, True),
        (2, 0.4, 2, 0.6, 2, False),  # both students are put on the first GPU, and 0.2 is left there
        (2, 0.6, 2, 0.4, 2, True),
        (4, 0.3, 2, 0.4, 2, False),
        (12, 1 / 6, 0, 0.5, 2, True),
        (13, 1 / 6, 0, 0.5, 2, False),
        (2, 2 / 3, 2, 1 / 3, 2, True),
        (1, 2, 1, 0.5, 2, False),
        (1, 1, 2, 0.5, 2, True),
        (2, 0.5, 1, 1, 2, True),
        (3, 0.5, 1, 1, 2, False),
        (1, 1, 0, 0, 0, False),
    ],
)
def test_shares_of_gpus_as_ray_places_them(
    students: int, share: float, evaluators: int, other: float, gpus: int, fits: bool
) -> None:
    """What Ray 2.60 does; `test_run_nodes` asks it again about some of them."""
    found = assign((students, evaluators), {"GPU": share}, {"GPU": other}, [{"GPU": gpus}], "PACK")
    assert (found is not None) is fits


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("PACK", [0, 1, 3]),
        ("SPREAD", [1, 1, 2]),
        ("STRICT_SPREAD", None),
        ("STRICT_PACK", None),
    ],
)
def test_what_the_strategies_mean(strategy: str, expected: list[int] | None) -> None:
    """Processes on each of three nodes with room for three."""
    found = assign((3, 1), {"CPU": 1}, {"CPU": 1}, [{"CPU": 3.0}] * 3, strategy)
    assert (sorted(map(sum, found)) if found is not None else None) == expected


def test_a_first_fit_would_be_wrong() -> None:
    """The student fits on both nodes, the evaluator on the first one alone."""
    nodes: list[Amounts] = [{"CPU": 8, "GPU": 1}, {"CPU": 1, "GPU": 1}]
    for strategy in ("PACK", "SPREAD", "STRICT_SPREAD"):
        assert assign((1, 1), {"CPU": 1, "GPU": 1}, {"CPU": 8}, nodes, strategy) == [(0, 1), (1, 0)]


def test_a_large_cluster_is_no_burden() -> None:
    nodes = [{"CPU": 4.0, "GPU": 2.0}] * 100
    found = assign((64, 4), {"GPU": 1}, {"CPU": 4}, nodes, "PACK")
    assert found is not None
    assert sum(counts != (0, 0) for counts in found) == 32, "evaluators stand beside students"
    assert assign((201, 0), {"GPU": 1}, {}, nodes, "PACK") is None


def holds(node: Amounts, bundles: Sequence[Amounts]) -> bool:
    """Plain twin: bundle after bundle, in exact fractions."""
    pool = {name: Fraction(amount) for name, amount in node.items() if name != "GPU"}
    gpus = [Fraction(1)] * int(node.get("GPU", 0))
    for bundle in bundles:
        for name, amount in bundle.items():
            share = Fraction(amount).limit_denominator(100)
            if name != "GPU":
                pool[name] = pool.get(name, Fraction(0)) - share
                if pool[name] < 0:
                    return False
                continue
            while share >= 1:
                if 1 not in gpus:
                    return False
                gpus[gpus.index(Fraction(1))] = Fraction(0)
                share -= 1
            room = sorted((left, index) for index, left in enumerate(gpus) if left >= share)
            if not room:
                return False
            gpus[room[0][1]] -= share
    return True


def exists(wanted: Counts, student: Amounts, evaluator: Amounts, nodes: Sequence[Amounts], strategy: str) -> bool:
    """Plain twin: try every way to send every bundle to a node."""
    bundles = [student] * wanted[0] + [evaluator] * wanted[1]
    for way in product(range(len(nodes)), repeat=len(bundles)):
        if strategy == "STRICT_PACK" and len(set(way)) > 1:
            continue
        if strategy == "STRICT_SPREAD" and len(set(way)) < len(way):
            continue
        sent = [[b for b, place in zip(bundles, way, strict=True) if place == n] for n in range(len(nodes))]
        if all(holds(node, held) for node, held in zip(nodes, sent, strict=True)):
            return True
    return False


amounts = st.fixed_dictionaries(
    {"CPU": st.sampled_from([1, 2, 0.5])},
    optional={"GPU": st.sampled_from([0.3, 0.4, 0.5, 0.6, 0.7, 1, 2]), "big": st.just(1)},
)
machines = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(0, 4), "GPU": st.integers(0, 2)}, optional={"big": st.integers(1, 2)}),
    min_size=1,
    max_size=3,
)


@given(
    wanted=st.tuples(st.integers(1, 3), st.integers(0, 2)),
    student=amounts,
    evaluator=amounts,
    nodes=machines,
    strategy=st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]),
)
def test_a_layout_is_found_where_trying_everything_finds_one(
    wanted: Counts, student: Amounts, evaluator: Amounts, nodes: list[Amounts], strategy: str
) -> None:
    found = assign(wanted, student, evaluator, nodes, strategy)
    assert (found is not None) == exists(wanted, student, evaluator, nodes, strategy)
    if found is None:
        return
    assert tuple(map(sum, zip(*found, strict=True))) == wanted
    for node, (students, evaluators) in zip(nodes, found, strict=True):
        assert holds(node, [student] * students + [evaluator] * evaluators)
    loads = [sum(counts) for counts in found]
    if strategy == "STRICT_PACK":
        assert sum(load > 0 for load in loads) == 1
    if strategy == "STRICT_SPREAD" or (
        strategy == "SPREAD" and exists(wanted, student, evaluator, nodes, "STRICT_SPREAD")
    ):
        assert max(loads) == 1
    if strategy == "PACK" and exists(wanted, student, evaluator, nodes, "STRICT_PACK"):
        assert max(loads) == sum(wanted)
