"""Average ROUGE: sentence splitting, hand-computed scores, several references."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.metrics.registry import Item, score
from ray_l4.metrics.rouge import WordTokenizer, f_measures, sentences


def one(prediction: str, *references: str) -> dict[str, float]:
    return score("avg_rouge", [Item(prediction, references, "0")])


def test_sentences_are_split_at_every_full_stop_and_empty_ones_dropped() -> None:
    assert sentences(" a  b. c ... d\n.e3.5 ") == "a b\nc\nd\ne3\n5"
    assert sentences(" . ") == ""


def test_hand_computed_scores() -> None:
    # Unigrams: 3 of 4 and 3 of 5. Bigrams: "red car" alone, of 3 and 4. Longest common subsequence: 3.
    values = one("the red car stops", "the old red car went")
    assert values["rouge1"] == pytest.approx(100 * 2 * 3 / (4 + 5))
    assert values["rouge2"] == pytest.approx(100 * 2 * 1 / (3 + 4))
    assert values["rougeL"] == pytest.approx(100 * 2 * 3 / (4 + 5))
    assert values["avg_rouge"] == pytest.approx((values["rouge1"] + values["rouge2"] + values["rougeL"]) / 3)


def test_case_inflection_and_punctuation_do_not_count() -> None:
    assert one("The Cars, stopping", "the car stopped!") == pytest.approx(
        dict.fromkeys(("rouge1", "rouge2", "rougeL", "avg_rouge"), 100.0)
    )


def test_rouge_l_is_at_summary_level() -> None:
    # Sentences in another order: the union over sentences matches all of them, a plain subsequence only one.
    assert one("red car. blue bike", "blue bike. red car")["rougeL"] == pytest.approx(100)
    assert one("red car blue bike", "blue bike red car")["rougeL"] == pytest.approx(50)


def test_references_are_pooled() -> None:
    """ROUGE-1.5.5: hits and units are summed over the references, before any division."""
    values = one("cheap thai food", "cheap thai food", "it is a nice place that has thai food")
    assert values["rouge1"] == pytest.approx(100 * 2 * (5 / 12) * (5 / 6) / (5 / 12 + 5 / 6))
    assert values["rouge2"] == pytest.approx(100 * 2 * (3 / 10) * (3 / 4) / (3 / 10 + 3 / 4))
    assert values["rougeL"] == pytest.approx(100 * 2 * (5 / 12) * (5 / 6) / (5 / 12 + 5 / 6))
    assert one("a red car", "a red car", "the blue bike")["avg_rouge"] == pytest.approx(50)


def test_an_empty_text_among_others_hits_nothing() -> None:
    assert one("", "a red car", "a bike")["avg_rouge"] == 0.0
    assert one("", "", "")["avg_rouge"] == 0.0
    # Recall 3 of 3, precision 3 of 2 x 3.
    assert one("a red car", "", "a red car")["rouge1"] == pytest.approx(100 * 2 * 1 * 0.5 / 1.5)


def pooled(prediction: str, references: list[str]) -> dict[str, float]:
    """The definition, with n-grams counted one by one (ROUGE-1 and ROUGE-2)."""
    values = {}
    for name, n in (("rouge1", 1), ("rouge2", 2)):
        grams = [Counter(pairwise_or_single(text, n)) for text in (prediction, *references)]
        hits = sum((grams[0] & reference).total() for reference in grams[1:])
        recall = hits / max(sum(reference.total() for reference in grams[1:]), 1)
        precision = hits / max(len(references) * grams[0].total(), 1)
        values[name] = 2 * precision * recall / (precision + recall) if hits else 0.0
    return values


def pairwise_or_single(text: str, n: int) -> list[tuple[str, ...]]:
    tokens = WordTokenizer().tokenize(text)
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def test_means_over_items() -> None:
    items = [Item("a red car", ("a red car",), "0"), Item("", ("a red car",), "1"), Item("no", ("a red car",), "2")]
    assert score("avg_rouge", items)["avg_rouge"] == pytest.approx(100 / 3)


def test_a_single_word_has_no_bigram() -> None:
    assert one("yes", "yes")["rouge2"] == 0.0
    assert one("", "")["avg_rouge"] == 0.0


WORDS = st.lists(st.sampled_from(["red", "cars", "stop.", "a", "Blue", "é", "3.5"]), max_size=10).map(" ".join)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_scores_are_percentages_and_independent_of_the_order_of_references(
    prediction: str, references: list[str]
) -> None:
    values = one(prediction, *references)
    assert all(0 <= value <= 100 for value in values.values())
    assert one(prediction, *references[::-1]) == pytest.approx(values)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=4))
def test_several_references_equal_the_plain_definition(prediction: str, references: list[str]) -> None:
    values = f_measures(prediction, references)
    assert {name: values[name] for name in ("rouge1", "rouge2")} == pytest.approx(pooled(prediction, references))


@given(WORDS, WORDS, st.integers(1, 4))
def test_the_same_reference_several_times_is_one(prediction: str, reference: str, times: int) -> None:
    assert f_measures(prediction, [reference] * times) == pytest.approx(f_measures(prediction, [reference]))


@given(WORDS)
def test_a_perfect_prediction_of_two_words_or_more_scores_100(text: str) -> None:
    text = f"two words {text}"
    assert one(text, text)["avg_rouge"] == pytest.approx(100)
