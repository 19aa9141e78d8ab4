"""Dialogue states: branches of the parser, accumulation over turns, gold answers of WOZ."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.metrics.dialogue import State, parse_state
from ray_l4.metrics.registry import Item, score


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("food: chinese; phone, address", State({"food": "chinese"}, ["phone", "address"])),
        ("food: chinese;", State({"food": "chinese"}, [""])),
        ("; phone", State({}, ["phone"])),
        ("none", State()),
        (" None ", State()),
        ("", State()),
        ("  ", State()),
        (";", State()),
        (" ; ", State()),
        ("; ,", State({}, ["", ""])),
        ("food: chinese", State()),
        ("food: chinese; phone; address", State()),
        ("food: a: b, area, price range :  cheap , area: ; x", State({"price range": "cheap", "area": ""}, ["x"])),
        ("food: thai, food: greek; phone, phone", State({"food": "greek"}, ["phone", "phone"])),
    ],
)
def test_parse_state(text: str, expected: State) -> None:
    assert parse_state(text) == expected


def test_saying_nothing_and_asking_nothing_differ() -> None:
    assert parse_state("none").requests != parse_state("food: x;").requests
    assert score("joint_goal_em", [Item("none", ("food: x;",), "d_0")])["turn_request_em"] == 0.0


def turns(*pairs: tuple[str, str], ids: list[str]) -> dict[str, float]:
    items = [Item(prediction, (gold,), name) for (prediction, gold), name in zip(pairs, ids, strict=True)]
    return score("joint_goal_em", items)


def test_an_early_error_persists_until_its_slot_is_overwritten() -> None:
    values = turns(
        ("food: thai;", "food: greek;"),
        ("; phone", "; phone"),
        ("food: greek;", "none"),
        ("area: east; phone", "area: east; phone, address"),
        ids=["en_0_0", "en_0_1", "en_0_2", "en_0_3"],
    )
    # Joint: wrong, still wrong, corrected by the third turn, right. Requests do not count.
    assert values == {"joint_goal_em": 50.0, "turn_goal_em": 50.0, "turn_request_em": 50.0, "avg_dialogue": 50.0}


def test_avg_dialogue_is_the_mean_of_joint_goal_and_turn_request() -> None:
    values = turns(("food: thai;", "food: thai;"), ("area: east;", "none"), ids=["a_0", "b_0"])
    assert values == {"joint_goal_em": 50.0, "turn_goal_em": 50.0, "turn_request_em": 50.0, "avg_dialogue": 50.0}
    values = turns(("food: thai; x", "food: thai; y"), ids=["a_0"])
    assert (values["joint_goal_em"], values["turn_request_em"], values["avg_dialogue"]) == (100.0, 0.0, 50.0)


def test_a_change_of_dialogue_clears_both_states() -> None:
    wrong, right = ("food: thai;", "food: greek;"), ("none", "none")
    assert turns(wrong, right, ids=["en_0_0", "en_0_1"])["joint_goal_em"] == 0.0
    assert turns(wrong, right, ids=["en_0_0", "en_1_0"])["joint_goal_em"] == 50.0
    # Only the part after the last underscore is the turn.
    assert turns(wrong, right, ids=["en_1_9", "en_11_9"])["joint_goal_em"] == 50.0
    # A dialogue that resumes after another one starts from scratch.
    assert turns(wrong, right, right, ids=["en_0_0", "en_1_0", "en_0_1"])["joint_goal_em"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("ids", [["7", "8"], ["0", "0"]])
def test_ids_without_underscore_are_dialogues_of_one_turn(ids: list[str]) -> None:
    assert turns(("food: thai;", "food: greek;"), ("none", "none"), ids=ids)["joint_goal_em"] == 50.0


def test_the_order_of_turns_matters() -> None:
    wrong, mended, ids = ("food: thai;", "food: greek;"), ("food: greek;", "food: greek;"), ["en_0_0", "en_0_1"]
    silent = ("none", "none")
    assert turns(wrong, silent, mended, ids=["d_0", "d_1", "d_2"])["joint_goal_em"] == pytest.approx(100 / 3)
    assert turns(mended, silent, wrong, ids=["d_0", "d_1", "d_2"])["joint_goal_em"] == pytest.approx(200 / 3)
    assert turns(wrong, mended, ids=ids)["turn_goal_em"] == turns(mended, wrong, ids=ids)["turn_goal_em"] == 50.0


ANSWERS = st.text("abn:,; o", max_size=12) | st.sampled_from(["none", "a: b;", "a: b; c", "; c"])
TURNS = st.lists(st.tuples(ANSWERS, ANSWERS, st.sampled_from(["d_0", "d_1", "e_0", "7"])), min_size=1, max_size=8)


@given(TURNS)
def test_scores_are_percentages_and_perfect_answers_get_100(turns: list[tuple[str, str, str]]) -> None:
    values = score("joint_goal_em", [Item(prediction, (gold,), name) for prediction, gold, name in turns])
    assert all(0 <= value <= 100 for value in values.values())
    assert set(score("joint_goal_em", [Item(gold, (gold,), name) for _, gold, name in turns]).values()) == {100.0}


@given(TURNS, st.randoms(use_true_random=False))
def test_turn_scores_ignore_the_order(turns: list[tuple[str, str, str]], random: Any) -> None:
    items = [Item(prediction, (gold,), name) for prediction, gold, name in turns]
    before = score("joint_goal_em", items)
    random.shuffle(items)
    after = score("joint_goal_em", items)
    assert before["turn_goal_em"] == after["turn_goal_em"]
    assert before["turn_request_em"] == after["turn_request_em"]


def gold_answers(path: Path) -> list[tuple[str, str]]:
    """Return (turn id, answer) of every turn, as REFERENCE.md#woz defines it."""
    answers = []
    for number, dialogue in enumerate(json.loads(gzip.decompress(path.read_bytes()))):
        previous: list[list[str]] = []
        for turn, content in enumerate(dialogue["dialogue"]):
            slots = [(act["act"], slot) for act in content["belief_state"] for slot in act["slots"]]
            informs = [slot for act, slot in slots if act == "inform"]
            new = ", ".join(": ".join(slot) for slot in informs if slot not in previous)
            asked = ", ".join(slot[1] for act, slot in slots if act != "inform")
            answer = f"{new};" + (f" {asked}" if asked else "") if new or asked else "None"
            answers.append((f"en_{number}_{turn}", answer.lower()))
            previous = informs
    return answers


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("split", "turns", "silent"), [("train", 2536, 814), ("validate", 830, 267), ("test", 1646, 532)]
)
def test_gold_answers_of_woz_score_full_marks(shared_data: Path, split: str, turns: int, silent: int) -> None:
    answers = gold_answers(shared_data / "raw" / "woz" / f"woz_{split}_en.json.gz")
    assert (len(answers), sum(answer == "none" for _, answer in answers)) == (turns, silent)
    assert set(score("joint_goal_em", [Item(answer, (answer,), name) for name, answer in answers]).values()) == {100.0}
    # An empty state is right for turns that say nothing, but never once the dialogue has a goal.
    quiet = score("joint_goal_em", [Item("none", (answer,), name) for name, answer in answers])
    assert quiet["turn_request_em"] == pytest.approx(100 * silent / turns)
    assert quiet["joint_goal_em"] < quiet["turn_goal_em"]
