"""Blank texts, and names that a task can have."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.config.text import is_blank

BLANK = [
    "",
    "  ",
    "\t\n",
    "\u00a0",
    "\u200b",
    "\ufeff",
    "\u2060 \u200b",
    "\u3000",
    "\u2028",
    "\u00ad",
    "\u2800",
    "\u3164",
]


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_text_without_a_visible_character_is_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", "\u200ba", "\u00a0.", "\u0301", "的", "👩\u200d🚀", "0"], ids=ascii)
def test_text_with_a_visible_character_is_not(text: str) -> None:
    assert not is_blank(text)


@pytest.mark.parametrize(
    "name", ["a|b", "a\nb", "a\tb", "a\x00b", "a\x1bb", "a\u200bb", "a\u2028b", "a\u202eb", " a", "a "]
)
def test_a_name_that_tables_and_files_cannot_show_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"a task's name cannot"):
        TaskConfig(name=name)


@pytest.mark.parametrize("name", BLANK, ids=ascii)
def test_a_name_without_visible_characters_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="needs a name that can be seen"):
        TaskConfig(name=name)


@pytest.mark.parametrize(
    "name", ["mini.woz", "a/b", "Fragen zu Möbeln", "长任务" * 60, "می\u200cخواهم", "..", "c#: x, y=1"]
)
def test_other_names_are_accepted(name: str) -> None:
    assert TaskConfig(name=name).name == name


def test_names_that_look_alike_are_one_name() -> None:
    stream = [{"name": "caf\u00e9", "path": "a"}, {"name": "cafe\u0301", "path": "b"}]
    with pytest.raises(ValidationError, match="look alike; write a task that comes back in the same way"):
        ExperimentConfig.model_validate_json(json.dumps({"stream": stream, "model": {"from_scratch": {}}}))
