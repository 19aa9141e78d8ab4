"""Names of special tokens in a user's text are text, never the token; where that cannot be, the example is bad."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ray_l4.errors import DataError
from ray_l4.text.base_tokenizer import train_base
from ray_l4.text.plain_text import without_unencodable
from ray_l4.text.tokenizer import TaskTokenizer

CORPUS = ["the cat sat on the mat", "a cat and a hat", "im start of turn"] * 3
LETTERS = "▁abcdefghijklmnopqrstuvwxyz<>/_|0123456789"


def byte_level() -> PreTrainedTokenizerBase:
    return train_base(CORPUS, 300)


def chat() -> PreTrainedTokenizerBase:
    base = train_base(CORPUS, 300)
    base.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "pad_token": "<pad>"})
    return base


def sentence_piece(model: models.Model, prepend: str) -> PreTrainedTokenizerBase:
    """Build a tokeniser like Llama 2's or Gemma's: blanks become ``▁``, and special tokens are in the vocabulary."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]


def bpe() -> PreTrainedTokenizerBase:
    return sentence_piece(
        models.BPE({t: i for i, t in enumerate([*SPECIALS, *LETTERS])}, [], unk_token="<unk>"), "first"
    )


def unigram() -> PreTrainedTokenizerBase:
    return sentence_piece(
        models.Unigram([*((t, 0.0) for t in SPECIALS), *((t, -3.0) for t in LETTERS)], unk_id=0), "always"
    )


BASES: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte level": byte_level,
    "chat": chat,
    "bpe": bpe,
    "unigram": unigram,
}
NAMES = ["<|endoftext|>", "__ans__", "__pad__", "__unk__", "__gen__", "__t__", "__spare_0__", "<|im_start|>", "</s>"]


@pytest.fixture(scope="module", params=BASES)
def tok(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TaskTokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    BASES[request.param]().save_pretrained(folder)
    return TaskTokenizer.pretrained(folder, ["t", "gen"], 1)


def special(tok: TaskTokenizer) -> set[int]:
    own = {tok.ans, tok.pad, tok.unk, tok.eos, *tok.task_tokens}
    return own | {i for i in tok.hf.all_special_ids if i != tok.hf.unk_token_id}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["{0}", "a cat {0} the mat", "a{0}b", "{0}{0}", "  {0}\n"])
def test_a_name_is_text_or_refused_and_never_the_token(tok: TaskTokenizer, text: str, name: str) -> None:
    text = text.format(name)
    if tok.why_unencodable(text):
        with pytest.raises(DataError, match="only encode as a token"):
            tok.encode(text)
        assert special(tok).isdisjoint(tok.encode_generated([text])[0])
        return
    ids = tok.encode(text)
    assert special(tok).isdisjoint(ids)
    assert tok.decode(ids).strip() == text.strip(), "the text that it is"
    assert tok.encode_generated([text]) == tok.encode_batch([text]) == [ids]


def test_only_a_vocabulary_that_holds_the_name_itself_refuses_it(tok: TaskTokenizer) -> None:
    is_entry = isinstance(tok.hf.backend_tokenizer.model, models.Unigram)
    assert bool(tok.why_unencodable("a </s> b")) == is_entry
    assert tok.why_unencodable("a __ans__ b") is None


@given(text=st.text("abc <>|_\n", max_size=40))
def test_other_texts_are_encoded_as_ever(tok: TaskTokenizer, text: str) -> None:
    assert tok.encode(text) == (
        tok.hf(tok._lead + text.strip(), add_special_tokens=False)["input_ids"] if text.strip() else []
    )


def test_added_tokens_that_are_words_stay_what_they_are(tmp_path: Path) -> None:
    """Such as Pythia's runs of blanks, or Qwen's <think>: vocabulary, not structure."""
    base = byte_level()
    base.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    base.save_pretrained(tmp_path)
    tok = TaskTokenizer.pretrained(tmp_path, ["t"], 0)
    assert tok.hf.convert_tokens_to_ids("<think>") in tok.encode("a <think> b")


def test_examples_that_cannot_be_encoded_are_bad_records(
    tok: TaskTokenizer, examples_of: Callable[..., pa.Table]
) -> None:
    table = examples_of(
        ("a cat", "how", "a"), ("the </s> mat", "how", "a"), ("a", "how", "b"), references=[["a"], ["a"], ["b", "</s>"]]
    )
    refusing = tok.why_unencodable("</s>") is not None
    kept = without_unencodable(table, tok, "task t, train", 0.7)
    assert kept["sample_id"].to_pylist() == (["sst-0"] if refusing else ["sst-0", "sst-1", "sst-2"])
    if not refusing:
        assert without_unencodable(table, tok, "task t, train", 0.0) is table
        return
    with pytest.raises(DataError, match=r"(?s)task t, train: 2 of 3 records cannot be used.*sst-1: contains '</s>'"):
        without_unencodable(table, tok, "task t, train", 0.5)


@pytest.mark.parametrize(
    ("normalizer", "text"),
    [
        (normalizers.Lowercase(), "a </S> b"),
        (normalizers.NFKC(), "a \uff1c/s> b"),
        (
            normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
            "a </\u0160> b",
        ),
        (normalizers.Replace("[", "<"), "a [/s> b"),
    ],
    ids=["lower case", "compatibility", "accents", "other characters"],
)
def test_a_name_that_normalising_makes_is_found(
    tmp_path: Path, examples_of: Callable[..., pa.Table], normalizer: normalizers.Normalizer, text: str
) -> None:
    base = unigram()
    base.backend_tokenizer.normalizer = normalizer
    base.save_pretrained(tmp_path)
    tok = TaskTokenizer.pretrained(tmp_path, ["t"], 0)
    assert tok.why_unencodable(text) is not None
    kept = without_unencodable(examples_of((text, "how", "a"), ("a cat", "how", "a")), tok, "task t, train", 0.7)
    assert kept["sample_id"].to_pylist() == ["sst-1"]
