"""A run on an instruct model: its prompts are rendered in the model's chat template, and the log says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, DataError
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


REFUSED: list[Message] = [{"role": "assistant", "content": "Hello"}, *QUESTION]


def test_one_refused_conversation_among_many_is_left_out(tmp_path: Path) -> None:
    chats.save_instruct(tmp_path / "model", chats.NO_SYSTEM, steps=0)
    config = experiment(tmp_path, chats.said("What is the capital of France?", system="Answer in one word."))
    answer = {"role": "assistant", "content": "Paris"}
    records = [json.dumps({"messages": [*turns, answer]}) + "\n" for turns in (*[QUESTION] * 200, REFUSED)]
    (tmp_path / "capitals" / "test.jsonl").write_text("".join(records))
    setup = prepare(config)
    assert len(setup.tests["capitals"].items) == 200
    assert setup.training["capitals"].num_rows == 1, "a system prompt alone is no reason"


def test_too_many_refused_conversations_are_an_error_with_the_right_remedy(tmp_path: Path) -> None:
    chats.save_instruct(tmp_path / "model", chats.NO_SYSTEM, steps=0)
    with pytest.raises(DataError, match=r"capitals, train: 1 of 1 records[\s\S]*Roles must[\s\S]*chat_template: none"):
        prepare(experiment(tmp_path, REFUSED))


@pytest.mark.parametrize(("more", "refused"), [(None, True), (0, True), (1, True), (2, False)])
def test_a_replay_length_without_room_is_refused(tmp_path: Path, more: int | None, refused: bool) -> None:
    """``more`` tokens than the template begins conversations with, or two in all. Two are for the end of a turn."""
    chats.save_instruct(tmp_path / "model", steps=0)
    config = experiment(tmp_path, QUESTION)
    given = 1 + len(prepare(config).tokenizer.lm_start)
    assert given > 2
    length = 2 if more is None else given + more
    replay = config.replay.model_copy(update={"max_length": length})
    config = config.model_copy(update={"replay": replay})
    if not refused:
        assert prepare(config).experiment.replay.max_length == length
        return
    with pytest.raises(ConfigError, match=rf"replay\.max_length: \d+ tokens leave no room.*with {given} tokens"):
        prepare(config)
