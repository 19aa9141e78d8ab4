"""WOZ 2.0, English: what a user turn changes in the dialogue state (REFERENCE.md#woz).

The papers call it MultiWOZ; the sizes say that it is WOZ 2.0 of the neural belief tracker. All text is lower case.
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
    """One example per user turn, in file order; ``sample_id`` is ``en_<dialogue>_<turn>``, both from 0."""
    path = find(source.raw / "woz", FILES[source.split])
    for dialogue_index, dialogue in enumerate(read_json_list(path)):
        try:
            yield from _turns(dialogue_index, dialogue)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            # A turn's answer depends on the turn before it, so a damaged turn costs the rest of its dialogue.
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
    """What the system just asked or offered, then what the user said (REFERENCE.md#woz, steps 1 and 2)."""
    acts = ", ".join(act if isinstance(act, str) else ": ".join(act) for act in system_acts)
    return " ".join(f"{acts} -- {transcript}".split() if acts else transcript.split())


def answer_of(informs: Informs, requests: list[str]) -> str:
    """``slot: value, slot: value; request, request``; ``None`` when nothing changed (REFERENCE.md#woz, step 5)."""
    if not informs and not requests:
        return "None"
    stated = ", ".join(f"{slot}: {value}" for slot, value in informs)
    return f"{stated}; {', '.join(requests)}" if requests else f"{stated};"
