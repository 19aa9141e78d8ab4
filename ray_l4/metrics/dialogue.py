"""Exact match of dialogue states (REFERENCE.md#joint-goal). The papers' "dsEM" is ``joint_goal_em``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_l4.metrics.item import Item, percentage


@dataclass(frozen=True)
class State:
    """The dialogue acts of one turn."""

    informs: dict[str, str] = field(default_factory=dict)
    """Values by slot."""
    requests: list[str] | None = None
    """Requested slots, or None if the turn says nothing. ``none`` and ``food: thai;`` therefore have different
    requests, although neither asks for anything."""


def parse_state(text: str) -> State:
    """Parse ``slot: value, slot: value; request, request``.

    A text without exactly one semicolon (such as ``none`` or blanks) is the empty state, and so is ``;``. Informs
    without exactly one colon are ignored. Requests keep their order and duplicates; an empty request part is a list
    with one empty string.
    """
    parts = text.split(";")
    if text.strip() == ";" or len(parts) != 2:
        return State()
    informs = [[side.strip() for side in inform.split(":")] for inform in parts[0].split(",")]
    requests = [request.strip() for request in parts[1].split(",")]
    return State({pair[0]: pair[1] for pair in informs if len(pair) == 2}, requests)


def state_em(items: Sequence[Item]) -> dict[str, float]:
    """Return the scores of dialogue turns against their first reference, in percent.

    - ``joint_goal_em``: the informs accumulated since the first turn of the dialogue are equal. An early error persists
      until its slot is overwritten. Requests do not count.
    - ``turn_goal_em``: the turn's own informs are equal.
    - ``turn_request_em``: the turn's request lists are equal.
    - ``avg_dialogue``: the mean of ``joint_goal_em`` and ``turn_request_em``. No published table has it.

    The order of the items matters: accumulation restarts when the dialogue changes. The dialogue is the ``sample_id``
    up to its last underscore (``en_12_0`` is turn 0 of ``en_12``). An id without underscore is a dialogue of one turn.
    """
    joint, turn_goal, turn_request = [], [], []
    dialogue = ""
    predicted: dict[str, str] = {}
    expected: dict[str, str] = {}
    for item in items:
        previous, dialogue = dialogue, item.sample_id.rpartition("_")[0]
        if not dialogue or dialogue != previous:
            predicted, expected = {}, {}
        prediction, gold = parse_state(item.prediction), parse_state(item.references[0])
        predicted |= prediction.informs
        expected |= gold.informs
        joint.append(predicted == expected)
        turn_goal.append(prediction.informs == gold.informs)
        turn_request.append(prediction.requests == gold.requests)
    values = {
        "joint_goal_em": percentage(joint),
        "turn_goal_em": percentage(turn_goal),
        "turn_request_em": percentage(turn_request),
    }
    return {**values, "avg_dialogue": (values["joint_goal_em"] + values["turn_request_em"]) / 2}
