"""Feedback is refused if training would leave it out, by the tokeniser and longest sequence of the served model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ray_l4.serve.feedback_routes import feedback_router
from ray_l4.serve.learnable import refuse_unlearnable
from ray_l4.serve.problems import RequestError
from ray_l4.store.inbox.assignments import waiting
from ray_l4.store.inbox.example import Example
from ray_l4.store.run_directory import RunDirectory
from ray_l4.tasks.inbox_tasks import add_task
from ray_l4.text.tokenizer import TaskTokenizer
from tests.serve.serve_fixtures import Served, copy_of, serving

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]
GOOD = {"task": "mini.woz", "context": "c", "question": "q", "answer": "yes"}
LONG = "no such words at all " * 2000


@pytest.fixture(scope="module")
def taught(run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of a copy of the run, which takes feedback."""
    own = copy_of(run, tmp_path_factory.mktemp("taught") / "run")
    add_task(own, own.experiment(), "new")
    with serving(own.path, extra=[feedback_router(own)]) as service:
        yield service


@pytest.mark.parametrize("task", ["mini.woz", "new"])
@pytest.mark.parametrize("field", ["answer", "question"])
def test_what_does_not_fit_is_refused_with_its_length_and_the_limit(taught: Served, task: str, field: str) -> None:
    longest = taught.model._longest
    tokens = len(taught.model.tokenizer.encode(LONG))
    assert tokens > longest
    response = taught.post("/v1/feedback", GOOD | {"task": task, field: LONG})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert f"{field} of {tokens}" in error["message"]
    assert f"exceed {longest} tokens" in error["message"]
    assert taught.service.run is not None
    assert waiting(taught.service.run.path, "new").examples == 0


def test_a_long_context_is_cut_and_an_answer_that_just_fits_is_taken(taught: Served) -> None:
    assert taught.post("/v1/feedback", GOOD | {"context": LONG}).status_code == 200
    tokenizer, longest = taught.model.tokenizer, taught.model._longest
    room = longest - len(tokenizer.encode("q")) - 1 - len(tokenizer.lm_end)
    words = LONG.split()
    fitting = max(count for count in range(longest) if len(tokenizer.encode(" ".join(words[:count]))) <= room)
    for count, status in ((fitting, 200), (fitting + 1, 400)):
        body = GOOD | {"answer": " ".join(words[:count])}
        assert taught.post("/v1/feedback", body).status_code == status


def test_blank_texts_are_refused_as_before(taught: Served) -> None:
    response = taught.post("/v1/feedback", GOOD | {"answer": " "})
    assert "the answer is blank" in response.json()["error"]["message"]


def test_a_text_that_could_only_be_a_token_is_refused(tmp_path: Path) -> None:
    """Of a tokeniser whose vocabulary has the names of its tokens, as those of SentencePiece do."""
    letters = [(letter, -3.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz<>/"]
    own = Tokenizer(models.Unigram([*((name, 0.0) for name in SPECIALS), *letters], unk_id=0))
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=own, **names).save_pretrained(tmp_path)
    tokenizer = TaskTokenizer.pretrained(tmp_path, ["t"], 1)
    refuse_unlearnable(Example("a cat", "where", ("on a mat",)), tokenizer, "t", 40)
    with pytest.raises(RequestError, match=r"cannot be learned: .*</s>"):
        refuse_unlearnable(Example("a cat </s>", "where", ("on a mat",)), tokenizer, "t", 40)
