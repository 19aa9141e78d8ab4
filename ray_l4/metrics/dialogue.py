"""Exact match of dialogue states: the "dsEM" of the papers is ``joint_goal_em`` (REFERENCE.md#joint-goal)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_l4.metrics.item import Item, percentage


@dataclass(frozen=True)
class State:
    """What one turn tells: slots with their values, and what is asked for.

    ``requests`` is ``None`` when the turn says nothing at all. That equals only itself: ``none`` and ``food: thai;``
    differ in their requests although neither asks for anything.
    """

    informs: dict[str, str] = field(default_factory=dict)
    requests: list[str] | None = None


def parse_state(text: str) -> State:
    """Read ``slot: value, slot: value; request, request``.

    A text without exactly one semicolon is the empty state (so are ``none`` and blanks), and so is ``;``. An inform
    piece without exactly one colon is ignored. Requests keep their order and duplicates; an empty request part is a
    list with one empty string.
    """
    parts = text.split(";")
    if text.strip() == ";" or len(parts) != 2:
        return State()
    informs = [[side.strip() for side in piece.split(":")] for piece in parts[0].split(",")]
    requests = [piece.strip() for piece in parts[1].split(",")]
    return State({pair[0]: pair[1] for pair in informs if len(pair) == 2}, requests)


def state_em(items: Sequence[Item]) -> dict[str, float]:
    """Scores of turns against their first reference, in percent.

    - ``joint_goal_em``: informs accumulated since the dialogue's first turn are equal. An early error persists until
      its slot is overwritten; requests do not count.
    - ``turn_goal_em``: the turn's own informs are equal.
    - ``turn_request_em``: the turn's request lists are equal.
    - ``avg_dialogue``: mean of ``joint_goal_em`` and ``turn_request_em``; in no table.

    Items are scored in the order given, and it matters: a change of dialogue, which is the sample id up to its last
    underscore (``en_12_0`` is turn 0 of ``en_12``), clears what was accumulated. An id without an underscore is a
    dialogue of one turn.
    """
    joint, turn_goal, turn_request = [], [], []
    dialogue = ""
    told: dict[str, str] = {}
    expected: dict[str, str] = {}
    for item in items:
        previous, dialogue = dialogue, item.sample_id.rpartition("_")[0]
        if not dialogue or dialogue != previous:
            told, expected = {}, {}
        prediction, gold = parse_state(item.prediction), parse_state(item.references[0])
        told |= prediction.informs
        expected |= gold.informs
        joint.append(told == expected)
        turn_goal.append(prediction.informs == gold.informs)
        turn_request.append(prediction.requests == gold.requests)
    values = {
        "joint_goal_em": percentage(joint),
        "turn_goal_em": percentage(turn_goal),
        "turn_request_em": percentage(turn_request),
    }
    return {**values, "avg_dialogue": (values["joint_goal_em"] + values["turn_request_em"]) / 2}
