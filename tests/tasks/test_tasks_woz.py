from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.tasks.registry import load
from ray_l4.tasks.woz import QUESTION, answer_of, context_of

Write = Callable[..., Path]
TASK = TaskConfig(name="woz.en", train="all", test="all")


def turn(text: str, informs: list[tuple[str, str]], requests: tuple[str, ...] = (), acts: Any = ()) -> dict[str, Any]:
    belief = [{"act": "inform", "slots": [list(pair)]} for pair in informs]
    belief[:0] = [{"act": "request", "slots": [["slot", name]]} for name in requests]
    return {"transcript": text, "system_acts": list(acts), "belief_state": belief}


DIALOGUES = [
    {
        "dialogue_idx": 800,
        "dialogue": [
            turn("Cheap  food, and the Phone?", [("price range", "cheap")], ("phone",)),
            turn(" In the East. ", [("area", "east"), ("price range", "cheap")], acts=["area"]),
            turn("Phone again?", [("area", "east"), ("price range", "cheap")], ("phone",), [["food", "thai"], "area"]),
            turn("Expensive then", [("price range", "expensive")]),
            turn("Thanks!", [("price range", "expensive")]),
        ],
    },
    {"dialogue_idx": 3, "dialogue": [turn("Cheap", [("price range", "cheap")])]},
]


def test_turns_become_deltas_of_the_state(write: Write, data: DataConfig) -> None:
    write("woz/woz_train_en.json.gz", DIALOGUES)
    rows = load(TASK, "train", data).to_pylist()
    assert [(row["sample_id"], row["context"], row["answer"]) for row in rows] == [
        ("en_0_0", "cheap food, and the phone?", "price range: cheap; phone"),
        ("en_0_1", "area -- in the east.", "area: east;"),
        ("en_0_2", "food: thai, area -- phone again?", "; phone"),  # a request counts at every turn
        ("en_0_3", "expensive then", "price range: expensive;"),  # a slot that disappears is not reported
        ("en_0_4", "thanks!", "none"),
        ("en_1_0", "cheap", "price range: cheap;"),  # a new dialogue starts with an empty state
    ]
    assert {row["question"] for row in rows} == {"what is the change in state?"}


def test_an_inform_element_without_slots_and_several_slots_in_one(write: Write, data: DataConfig) -> None:
    belief = [{"act": "inform"}, {"act": "inform", "slots": [["food", "thai"], ["area", "east"]]}]
    one = {"dialogue": [{"transcript": "Hi", "system_acts": [], "belief_state": belief}]}
    write("woz/woz_test_en.json", [one])
    assert load(TASK, "test", data).column("answer").to_pylist() == ["food: thai, area: east;"]


def test_a_damaged_dialogue_is_counted_and_the_others_kept(write: Write, lenient: DataConfig, data: DataConfig) -> None:
    damaged = {"dialogue": [turn("Fine", []), {"transcript": "no state", "system_acts": []}]}
    write("woz/woz_train_en.json", [damaged, *DIALOGUES])
    assert load(TASK, "train", lenient).column("sample_id").to_pylist()[:3] == ["en_0_0", "en_1_0", "en_1_1"]
    with pytest.raises(
        DataError, match=r"woz_train_en.json, dialogue 0: not a WOZ dialogue: KeyError\('belief_state'\)"
    ):
        load(TASK, "train", data)


def test_context_and_answer_have_the_documented_format() -> None:
    assert (
        context_of(["area"], "I would like the East  part of town. ") == "area -- I would like the East part of town."
    )
    assert context_of([], "Hi") == "Hi"
    assert context_of([["food", "thai"], "area"], "x") == "food: thai, area -- x"
    assert answer_of([], []) == "None"
    assert answer_of([("food", "thai")], []) == "food: thai;"
    assert answer_of([], ["phone", "address"]) == "; phone, address"
    assert answer_of([("a", "b"), ("c", "d")], ["e"]) == "a: b, c: d; e"


@pytest.mark.shared_data
@pytest.mark.parametrize(("split", "turns", "nones"), [("train", 2536, 814), ("dev", 830, 267), ("test", 1646, 532)])
def test_the_real_sizes_and_none_counts(split: Any, turns: int, nones: int, real: DataConfig) -> None:
    table = load(TaskConfig(name="woz.en"), split, real)
    answers = table.column("answer").to_pylist()
    assert (len(answers), answers.count("none")) == (turns, nones)
    assert set(table.column("question").to_pylist()) == {QUESTION}
    assert all(text == text.lower() for name in ("context", "answer") for text in table.column(name).to_pylist())


@pytest.mark.shared_data
def test_the_worked_examples_of_the_reference(real: DataConfig) -> None:
    pairs = {
        (row["context"], row["answer"])
        for split in ("train", "test")
        for row in load(TaskConfig(name="woz.en"), split, real).to_pylist()  # type: ignore[arg-type]
    }
    assert ("area -- i would like the east part of town.", "area: east;") in pairs
    assert ("could i get the address, phone number, and postcode of yu garden?", "; postcode, phone, address") in pairs
    assert ("thanks so much!", "none") in pairs
    question = "what is the phone number and postcode of a cheap restaurant in the east part of town?"
    assert (question, "price range: cheap, area: east; phone, postcode") in pairs
