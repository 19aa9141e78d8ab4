"""Generator of mini.woz: dialogues of two or three turns and the change each turn makes to the dialogue state.

The format is that of REFERENCE.md#woz. A user never repeats a value that is already set, and an answer lists slots in
the order of their mention, so the context alone determines the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from random import Random

from ray_l4.tasks.embedded.grammar import AREAS, FOODS, PRICES, Keep, draw_kept
from ray_l4.tasks.rows import Row
from ray_l4.tasks.woz import QUESTION, Informs, answer_of

VALUES = {"price": PRICES, "food": FOODS, "area": AREAS}
FORMS = {"price": "{} prices", "food": "{} food", "area": "the {}"}
REQUESTS = ("phone", "address", "postcode")

OPENERS = ("i want", "i need", "find me", "is there", "i am looking for")
ANSWERS = ("{} please", "i would like {}", "i want {}", "let us say {}", "make it {}")
CHANGES = ("how about {}", "what about {}", "is there one with {}", "change it to {}", "do you have {}")
ASKS = ("what is the {}", "can i have the {}", "give me the {}", "tell me the {}", "i need the {}")
THANKS = (
    ("great", "perfect", "good", "ok", "fine", "yes"),
    ("thanks", "thank you", "thanks so much", "thank you very much"),
    ("bye", "goodbye", "that is all", "see you", "have a nice day", "nothing else"),
)

Turn = tuple[str, tuple[Informs, list[str]]]
"""Context, then the slots with their values that the user states and the slots that the user requests."""


def rows(generator: Random, keep: Keep) -> Iterator[Row]:
    """Yield turns, dialogue after dialogue, endlessly; ``sample_id`` is ``en_<dialogue>_<turn>``."""
    for dialogue in count():
        state: dict[str, str] = {}
        for turn in range(generator.choice((2, 2, 3))):
            context, (informs, requests) = draw_kept(partial(_turn, generator, turn, state), keep)
            state.update(informs)
            answer = answer_of(informs, requests).lower()
            yield Row(context=context, question=QUESTION, references=[answer], sample_id=f"en_{dialogue}_{turn}")


def _turn(generator: Random, turn: int, state: dict[str, str]) -> Turn:
    if turn == 0:
        return _opening(generator)
    draw = generator.choices((_answer, _change, _ask, _thanks), weights=(35, 25, 30, 10))[0]
    return draw(generator, state)


def _opening(generator: Random) -> Turn:
    """Draw a wish with one to three slots and sometimes a request."""
    given = generator.sample(list(VALUES), generator.choices((1, 2, 3), weights=(2, 3, 3))[0])
    informs = [(slot, generator.choice(VALUES[slot])) for slot in VALUES if slot in given]
    said = dict(informs)
    words = [generator.choice(OPENERS), *(said[slot] for slot in ("price", "food") if slot in said), "food"]
    if "area" in said:
        words.append(f"in the {said['area']}")
    requests = [generator.choice(REQUESTS)] if generator.random() < 0.25 else []
    words.extend(f"and {generator.choice(ASKS[1:4]).format(name)}" for name in requests)
    return " ".join(words), (informs, requests)


def _answer(generator: Random, state: dict[str, str]) -> Turn:
    """Draw a turn in which the user answers the system's question for a slot."""
    slot, value = _new(generator, state)
    return f"{slot} -- {generator.choice(ANSWERS).format(value)}", ([(slot, value)], [])


def _change(generator: Random, state: dict[str, str]) -> Turn:
    """Draw a turn in which the user changes or adds a slot."""
    slot, value = _new(generator, state)
    return generator.choice(CHANGES).format(FORMS[slot].format(value)), ([(slot, value)], [])


def _ask(generator: Random, state: dict[str, str]) -> Turn:
    requests = _requests(generator)
    return generator.choice(ASKS).format(" and ".join(requests)), ([], requests)


def _thanks(generator: Random, state: dict[str, str]) -> Turn:
    return " ".join(generator.choice(words) for words in THANKS), ([], [])


def _new(generator: Random, state: dict[str, str]) -> tuple[str, str]:
    """Draw a slot and a value that differs from its current one."""
    slot = generator.choice(list(VALUES))
    return slot, generator.choice([value for value in VALUES[slot] if value != state.get(slot)])


def _requests(generator: Random) -> list[str]:
    return generator.sample(REQUESTS, generator.choice((1, 2)))
