"""A run on an instruct model: its prompts are rendered in the model's chat template, and the log says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import DataError
from ray_l4.setup.setup import prepare
from ray_l4.tasks.chat import Message
from ray_l4.text.tokenizer import TaskTokenizer
from tests.text import chat_fixtures as chats


def experiment(folder: Path, turns: list[Message], **model: Any) -> ExperimentConfig:
    (folder / "capitals").mkdir()
    record = {"messages": [*turns, {"role": "assistant", "content": "Paris"}]}
    for split in ("train", "test"):
        (folder / "capitals" / f"{split}.jsonl").write_text(json.dumps(record))
    return ExperimentConfig.model_validate(
        {
            "stream": [{"name": "capitals", "path": str(folder / "capitals"), "metric": "em"}],
            "model": {"name": str(folder / "model"), **model},
        }
    )


QUESTION = chats.said("What is the capital of France?")


@pytest.mark.parametrize(("trained", "asked", "warned"), [(False, "auto", 1), (False, "none", 0), (True, "auto", 0)])
def test_a_checkpoint_trained_without_the_template_goes_on_without_it(
    tmp_path: Path, trained: bool, asked: str, warned: int
) -> None:
    chats.save_instruct(tmp_path / "model", steps=0)
    TaskTokenizer.pretrained(tmp_path / "model", ["capitals"], 2, chat=trained).save(tmp_path / "model")
    setup = prepare(experiment(tmp_path, QUESTION, chat_template=asked))
    assert (setup.tokenizer.chat is not None) is trained
    assert sum("trained without its chat template" in text for text in setup.warnings) == warned


@pytest.mark.parametrize(
    ("template", "eos", "settings", "rendered", "warned"),
    [
        (chats.CHATML, "<|im_end|>", {}, True, False),
        (chats.CHATML, "<|endoftext|>", {}, True, True),
        (chats.CHATML, "<|endoftext|>", {"chat_template": "none"}, False, False),
        (None, "<|endoftext|>", {}, False, False),
    ],
    ids=["instruct", "base with a template", "not wanted", "no template"],
)
def test_a_template_is_used_if_there_is_one(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    template: str | None,
    eos: str,
    settings: dict[str, str],
    rendered: bool,
    warned: bool,
) -> None:
    chats.save_instruct(tmp_path / "model", template, steps=0, eos=eos)
    with caplog.at_level(logging.INFO, "ray_l4.setup.setup"):
        setup = prepare(experiment(tmp_path, QUESTION, **settings))
    assert any("(model.chat_template)" in record.message for record in caplog.records) is rendered
    assert [("turns end in <|im_end|>" in text, "chat_template: none" in text) for text in setup.warnings] == [
        (True, True)
    ] * warned
    ids = setup.tests["capitals"].prompts["ids"][0].as_py()
    hf = setup.tokenizer.hf
    assert (setup.tokenizer.ans in ids) is not rendered
    if rendered:
        assert ids == hf.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
        assert setup.training["capitals"]["ids"][0].as_py()[: len(ids)] == ids
    else:
        assert ids == [*setup.tokenizer.encode(QUESTION[0]["content"]), setup.tokenizer.ans]


def test_conversations_that_the_template_refuses_count_as_examples_that_do_not_fit(tmp_path: Path) -> None:
    chats.save_instruct(tmp_path / "model", chats.NO_SYSTEM, steps=0)
    turns = chats.said("What is the capital of France?", system="Answer in one word.")
    with pytest.raises(
        DataError, match=r"1 of 1 examples in task capitals, train do not fit[\s\S]*System role not supp"
    ):
        prepare(experiment(tmp_path, turns))
