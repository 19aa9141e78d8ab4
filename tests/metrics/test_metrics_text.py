"""em, nf1 and nem: hand-computed branches and invariants."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.metrics.registry import Item, score
from ray_l4.metrics.text import f1, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, a dog & AN owl!", "cat dog owl"),
        ("Sci/Tech", "scitech"),
        ("theatre another", "theatre another"),
        ("t.h.e end", "end"),  # punctuation is removed before articles
        ("“quoted” — yes…", "quoted yes"),
        ("5 € $5 €5 £5 ¥5", "5 5 5 5 5"),  # all currencies are like the dollar
        ("１＋１＝２，好的～！", "１１２ 好 的"),  # in full width as in ASCII: 1+1=2~
        ("＜Ａ＞ ＾｀｜", "ａ"),
        ("The", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("a b c", "a b c", 1.0),
        ("b c", "c d e", 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("a a b", "a b b", 2 / 3),  # a repeated word counts as often as both texts contain it
        ("a", "b", 0.0),
        ("", "b", 0.0),
        ("a", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_f1(prediction: str, reference: str, expected: float) -> None:
    assert f1(prediction, reference) == pytest.approx(expected)


def one(prediction: str, *references: str) -> dict[str, float]:
    return score("em", [Item(prediction, references, "0")])


def test_exact_match_compares_stripped_but_otherwise_unchanged_text() -> None:
    assert one(" World", "World ") == {"em": 100.0, "nf1": 100.0, "nem": 100.0}
    assert one("world", "World") == {"em": 0.0, "nf1": 100.0, "nem": 100.0}
    assert one("World, World", "World World")["em"] == 0.0


def test_the_best_of_several_references_counts() -> None:
    values = one("red car", "blue bike", "a red car", "red")
    assert values == {"em": 0.0, "nf1": 100.0, "nem": 100.0}
    assert one("red car", "blue bike", "red")["nf1"] == pytest.approx(200 / 3)
    assert one("red car", "blue bike", "red car")["em"] == 100.0


def test_values_are_means_over_items() -> None:
    items = [Item("x", ("x",), "0"), Item("X!", ("x",), "1"), Item("x y", ("x",), "2"), Item("z", ("x",), "3")]
    for metric in ("em", "nf1", "nem"):
        assert score(metric, items) == pytest.approx({"em": 25.0, "nem": 50.0, "nf1": 100 * (2 + 2 / 3) / 4})


ITEMS = st.lists(
    st.builds(
        Item,
        st.text("aTe h.é", max_size=8),
        st.lists(st.text("aTe h.é", max_size=8), min_size=1, max_size=3).map(tuple),
        st.just("x"),
    ),
    min_size=1,
    max_size=6,
)


@given(ITEMS)
def test_stricter_scores_are_lower_and_all_are_percentages(items: list[Item]) -> None:
    values = score("em", items)
    assert 0 <= values["em"] <= values["nem"] <= values["nf1"] <= 100


@given(ITEMS)
def test_perfect_predictions_score_100(items: list[Item]) -> None:
    perfect = [Item(item.references[-1], item.references, item.sample_id) for item in items]
    assert score("nf1", perfect) == {"em": 100.0, "nf1": 100.0, "nem": 100.0}


@given(ITEMS, st.randoms(use_true_random=False))
def test_order_of_items_and_references_does_not_matter(items: list[Item], random: Any) -> None:
    turned = [Item(item.prediction, item.references[::-1], item.sample_id) for item in items]
    random.shuffle(turned)
    assert score("em", turned) == pytest.approx(score("em", items))
