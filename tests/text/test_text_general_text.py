"""The general text in windows of tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import DataError
from ray_l4.text.general_text import LONGEST_WINDOW, GeneralText, general_text, windows_of
from tests.learner import learner_fixtures as small

WORDS = " ".join(small.WORDS * 30)


def read(path: Path, text: str = WORDS, most_tokens: int = 8192, longest: int = 64) -> GeneralText:
    (path / "some.txt").write_text(text, encoding="utf-8")
    return general_text(path / "some.txt", most_tokens, small.tokenizer(), longest)


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(2, 20))
def test_windows_hold_all_tokens_but_one_that_is_alone(ids: list[int], length: int) -> None:
    windows = windows_of(ids, length)
    found = np.concatenate([np.asarray([], np.int32), *windows]).tolist()
    assert found == (ids[:-1] if len(ids) % length == 1 else ids)
    assert all(1 < len(window) <= length for window in windows)
    assert all(len(window) == length for window in windows[:-1])


def test_it_is_plain_text_from_the_beginning(tmp_path: Path) -> None:
    whole, some = read(tmp_path), read(tmp_path, most_tokens=150)
    ids = small.tokenizer().encode(WORDS)
    assert np.concatenate(whole.windows).tolist() == ids
    assert np.concatenate(some.windows).tolist() == ids[:150]
    assert (some.name, some.tokens, some.predicted) == ("some.txt", 150, 150 - 3)


def test_windows_are_as_long_as_sequences_of_the_run_but_not_longer_than_the_limit(tmp_path: Path) -> None:
    assert len(read(tmp_path, longest=7).windows[0]) == 7
    assert len(read(tmp_path, longest=4096).windows[0]) == LONGEST_WINDOW


def test_names_of_special_tokens_are_text(tmp_path: Path) -> None:
    tok = small.tokenizer()
    found = read(tmp_path, f"{WORDS} <|endoftext|> __ans__ __a__ __pad__")
    special = {tok.eos, tok.ans, tok.pad, tok.unk, *tok.task_tokens}
    assert not special & set(np.concatenate(found.windows).tolist())


def test_the_digest_tells_texts_and_windows_apart(tmp_path: Path) -> None:
    texts = [read(tmp_path), read(tmp_path, most_tokens=150), read(tmp_path, longest=63), read(tmp_path, WORDS[1:])]
    assert len({text.digest for text in texts}) == 4
    assert read(tmp_path).digest == texts[0].digest


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"evaluation.general: .*some.txt has \d\d tokens.*needs 100 tokens"):
        read(tmp_path, " ".join(small.WORDS))


def test_text_that_the_tokeniser_cannot_encode_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tok = small.tokenizer()
    monkeypatch.setattr(tok, "_reserved", frozenset(tok.encode("word1")))
    with pytest.raises(DataError, match=r"evaluation.general: .*some.txt: the text .*can only encode as a token"):
        read(tmp_path)
