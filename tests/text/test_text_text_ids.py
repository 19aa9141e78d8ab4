"""Conversion between text and ids: encoding as a continuation, and decoding."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.text.cleanup import clean_up
from ray_l4.text.tokenizer import TaskTokenizer


def test_encoding_is_a_continuation_without_special_tokens(tokenizer: TaskTokenizer) -> None:
    ids = tokenizer.encode("cheap food")
    assert ids == tokenizer.encode("  cheap food\n") == tokenizer.hf(" cheap food")["input_ids"]
    assert ids != tokenizer.hf("cheap food")["input_ids"]
    assert tokenizer.encode("") == tokenizer.encode(" \n") == []
    # Texts encoded separately concatenate to the encoding of the whole (REFERENCE.md#base-tokeniser).
    assert tokenizer.encode("cheap") + tokenizer.encode("food") == ids


def test_a_batch_is_encoded_like_its_texts(tokenizer: TaskTokenizer) -> None:
    texts = ["food: chinese", "", " north ", "is this __ans__ it?"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


@given(text=st.text(max_size=60))
def test_decoding_returns_the_stripped_text_with_a_leading_space(tokenizer: TaskTokenizer, text: str) -> None:
    stripped = text.encode("utf-8", "ignore").decode("utf-8").strip()
    assert tokenizer.decode(tokenizer.encode(stripped)) == clean_up(f" {stripped}" if stripped else "")


def test_added_tokens_are_decoded_after_one_space(tokenizer: TaskTokenizer) -> None:
    ids = [tokenizer.gen["sst"], *tokenizer.encode("cheap food ."), tokenizer.ans, *tokenizer.encode("north")]
    assert tokenizer.decode(ids) == " __sst__ cheap food. __ans__ north"
    assert tokenizer.decode([tokenizer.pad, tokenizer.pad]) == " __pad__ __pad__"
    assert tokenizer.decode([]) == ""
    # A decoded pseudo-example is text: its tokens' names are encoded like any other.
    ids = [*tokenizer.encode("cheap food"), tokenizer.ans, *tokenizer.encode("north")]
    assert tokenizer.encode(tokenizer.decode(ids)) == tokenizer.encode("cheap food __ans__ north") != ids


@pytest.mark.shared_data
def test_llama_style_encodings_concatenate_to_the_whole(shared_data: Path) -> None:
    llama = TaskTokenizer.pretrained(shared_data / "models" / "stories260K", ["t"], spare=0)
    assert llama.encode("Once upon") + llama.encode("a time") == llama.encode("Once upon a time")


@given(texts=st.lists(st.text(max_size=20), max_size=8))
def test_a_batch_has_the_ids_that_transformers_gives(tokenizer: TaskTokenizer, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode("utf-8").strip() for text in [*texts, *texts[:2]]]
    plain = [
        tokenizer.hf(f" {text}", add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
        for text in texts
    ]
    assert tokenizer.encode_batch(texts) == plain
