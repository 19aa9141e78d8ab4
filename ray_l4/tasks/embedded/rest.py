"""Generator of mini.rest: a dialogue act about a restaurant and its sentence (format of REFERENCE.md#rnnlg).

The act and the set of its slots determine the wording, so the reference is the only correct answer; the order of the
slots in the act is random.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from random import Random

from ray_l4.tasks.embedded.grammar import AREAS, FOODS, PRICES, Keep, draw_kept
from ray_l4.tasks.rnnlg import QUESTION
from ray_l4.tasks.rows import Row

NAMES = tuple(
    f"{first} {second}" for first in ("golden", "royal", "little", "old") for second in ("dragon", "garden", "house")
)
VALUES = {"name": NAMES, "food": FOODS, "area": AREAS, "price": PRICES}

WORDINGS: dict[str, dict[tuple[str, ...], str]] = {
    "inform": {
        ("name", "food"): "{name} serves {food} food",
        ("name", "area"): "{name} is in the {area} of town",
        ("name", "price"): "{name} has {price} prices",
        ("name", "food", "area"): "{name} cooks {food} dishes in the {area}",
        ("name", "food", "price"): "{name} serves {food} food at {price} prices",
        ("name", "food", "area", "price"): "{name} offers {price} {food} food in the {area} of town",
    },
    "recommend": {
        ("name", "food"): "you should try {name} for {food} food",
        ("name", "area"): "you will like {name} in the {area}",
        ("name", "food", "price"): "for a {price} {food} meal go to {name}",
        ("name", "area", "price"): "try {name} , a {price} place in the {area}",
    },
    "inform_no_match": {
        ("food", "area"): "sorry , there is no {food} restaurant in the {area}",
        ("food", "price"): "sorry , no {price} restaurant serves {food} food",
        ("area", "price"): "there is nothing {price} in the {area}",
        ("food", "area", "price"): "i can not find {price} {food} food in the {area}",
    },
    "?confirm": {
        ("food", "area"): "did you say {food} food in the {area} ?",
        ("food", "price"): "do you want {price} {food} food ?",
        ("area", "price"): "is it a {price} place in the {area} that you want ?",
        ("food", "area", "price"): "you are looking for {price} {food} food in the {area} , right ?",
    },
}
ACTS = [(act, slots, wording) for act, wordings in WORDINGS.items() for slots, wording in wordings.items()]


def rows(generator: Random, keep: Keep) -> Iterator[Row]:
    """Yield acts with their sentences, endlessly."""
    for number in count():
        context, sentence = draw_kept(partial(_act, generator), keep)
        yield Row(context=context, question=QUESTION, references=[sentence], sample_id=str(number))


def _act(generator: Random) -> tuple[str, str]:
    act, slots, wording = generator.choice(ACTS)
    values = {slot: generator.choice(VALUES[slot]) for slot in generator.sample(slots, len(slots))}
    given = ";".join(f"{slot}='{value}'" if slot == "name" else f"{slot}={value}" for slot, value in values.items())
    return f"{act}({given})", wording.format(**values)
