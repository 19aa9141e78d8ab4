"""Reader of WOZ 2.0, English: a user turn and the change it makes to the dialogue state (REFERENCE.md#woz).

The papers call the data MultiWOZ, but its sizes show that it is the neural belief tracker's WOZ 2.0. All text is
lower-cased.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray_l4.tasks.files import find, read_json_list
from ray_l4.tasks.rows import BadRecords, Row
from ray_l4.tasks.source import Source

QUESTION = "what is the change in state?"

FILES = {"train": "woz_train_en.json", "dev": "woz_validate_en.json", "test": "woz_test_en.json"}

Informs = list[tuple[str, str]]


def read(source: Source, bad: BadRecords) -> Iterator[Row]:
    """Yield one example per user turn, in file order; ``sample_id`` is ``en_<dialogue>_<turn>``, both from 0."""
    path = find(source.raw / "woz", FILES[source.split])
    for dialogue_index, dialogue in enumerate(read_json_list(path)):
        try:
            yield from _turns(dialogue_index, dialogue)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            # An answer depends on the previous turn, so the rest of the dialogue is lost with a damaged turn.
            bad.add(f"{path.name}, dialogue {dialogue_index}", f"not a WOZ dialogue: {error!r}")


def _turns(dialogue_index: int, dialogue: Any) -> Iterator[Row]:
    previous: Informs = []
    for turn_index, turn in enumerate(dialogue["dialogue"]):
        informs, requests = _state(turn["belief_state"])
        new = [pair for pair in informs if pair not in previous]
        previous = informs
        yield Row(
            context=context_of(turn["system_acts"], turn["transcript"]).lower(),
            question=QUESTION,
            references=[answer_of(new, requests).lower()],
            sample_id=f"en_{dialogue_index}_{turn_index}",
            where=f"dialogue {dialogue_index}, turn {turn_index}",
        )


def _state(belief_state: list[dict[str, Any]]) -> tuple[Informs, list[str]]:
    informs: Informs = []
    requests: list[str] = []
    for element in belief_state:
        for slot, value in element.get("slots", ()):
            if element["act"] == "inform":
                informs.append((slot, value))
            else:
                requests.append(value)
    return informs, requests


def context_of(system_acts: list[str | list[str]], transcript: str) -> str:
    """Return the system's last acts followed by the user's utterance (REFERENCE.md#woz, steps 1 and 2)."""
    acts = ", ".join(act if isinstance(act, str) else ": ".join(act) for act in system_acts)
    return " ".join(f"{acts} -- {transcript}".split() if acts else transcript.split())


def answer_of(informs: Informs, requests: list[str]) -> str:
    """Return ``slot: value, slot: value; request, request``, or ``None`` for no change (REFERENCE.md#woz, step 5)."""
    if not informs and not requests:
        return "None"
    stated = ", ".join(f"{slot}: {value}" for slot, value in informs)
    return f"{stated}; {', '.join(requests)}" if requests else f"{stated};"
