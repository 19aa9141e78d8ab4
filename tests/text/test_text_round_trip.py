"""What a tokeniser loses of a text: what it may lose, and what makes it useless."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ray_l4.text.base_tokenizer import train_base
from ray_l4.text.round_trip import what_is_lost
from ray_l4.text.tokenizer import TaskTokenizer

TEXTS = [
    "The cat sat on the mat, and I want cheap food.",
    "don't stop: it's 12.5 % off, is it?",
    "select max(points) from table where player = kobe",
    "Ein Café in Zürich",
]
SPECIALS = ["<unk>", "<pad>", "<bos>", "<eos>", "<s>", "</s>", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "<|end|>"]


def byte_level(folder: Path, tokenizer_class: str) -> TaskTokenizer:
    """Save a byte-level tokeniser, say that it is of this class, and load it as transformers then does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f" {text}" for text in TEXTS] * 2, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": tokenizer_class}))
    return TaskTokenizer.pretrained(folder, ["t"], 0)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_a_class_that_fits_loses_nothing(tmp_path: Path, name: str) -> None:
    tok = byte_level(tmp_path, name)
    assert what_is_lost(tok, TEXTS) is None
    assert [tok.round_trip(text).strip() for text in TEXTS] == TEXTS


@pytest.mark.parametrize("name", ["GemmaTokenizer", "CodeLlamaTokenizer", "NllbTokenizer", "BertTokenizer"])
def test_a_class_that_does_not_fit_loses_blanks_or_words(tmp_path: Path, name: str) -> None:
    lost = what_is_lost(byte_level(tmp_path, name), TEXTS)
    assert lost is not None
    assert "comes back as" in lost


def saved(folder: Path, tokenizer: Tokenizer, unk: str = "<unk>") -> TaskTokenizer:
    base: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token=unk)
    base.save_pretrained(folder)
    return TaskTokenizer.pretrained(folder, ["t"], 0)


def lower_casing(texts: list[str]) -> Tokenizer:
    """BERT's kind, uncased: lower case, no accents, blanks around punctuation."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def sentence_piece(texts: list[str]) -> Tokenizer:
    """Llama 2's kind: blanks are ▁, and compatible forms are unified."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


CHINESE = ["我想要便宜的食物", "北边的餐厅", "这部电影 很好"]


@pytest.mark.parametrize("build", [lower_casing, sentence_piece])
@pytest.mark.parametrize("texts", [TEXTS, [f"  {text}  ".replace(" ", "   ") for text in TEXTS], CHINESE])
def test_usual_normalisation_is_no_loss(
    tmp_path: Path, build: Callable[[list[str]], Tokenizer], texts: list[str]
) -> None:
    assert what_is_lost(saved(tmp_path, build(texts)), texts) is None


def test_a_rare_character_may_be_unknown_and_a_whole_script_may_not(tmp_path: Path) -> None:
    tok = saved(tmp_path, sentence_piece(TEXTS))
    assert what_is_lost(tok, [*TEXTS, "the cat ☕"]) is None
    lost = what_is_lost(tok, CHINESE)
    assert lost is not None
    assert "characters, 0 remain" in lost


def test_words_in_pieces_are_lost(tmp_path: Path) -> None:
    """Without a decoder, all pieces are separated by blanks."""
    tokenizer = Tokenizer(
        models.BPE({"<unk>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(sorted({*"".join(TEXTS)}))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    lost = what_is_lost(saved(tmp_path, tokenizer), TEXTS)
    assert lost is not None
    assert "words" in lost


THAI = ["ฉันชอบแมว", "อาหารไทยอร่อยมาก กินข้าวกันไหม"]
HINDI = ["मुझे सस्ता खाना चाहिए", "रेस्तरां कहाँ है?"]
NUMBERS = ["it costs 30 pounds, or so, in the centre of town", "the phone is 3517, and it is closed on Mondays"]
ACCENTS = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])


@pytest.mark.parametrize(
    ("normalizer", "texts", "what"),
    [
        (normalizers.Replace(Regex("[0-9]"), ""), NUMBERS, "digits, 0 remain"),
        (ACCENTS, HINDI, "vowel signs, 0 remain"),
        (ACCENTS, THAI, "vowel signs, 0 remain"),
        (normalizers.BertNormalizer(), HINDI, "vowel signs, 7 remain"),
        (ACCENTS, TEXTS, None),
        (ACCENTS, ["أَريدُ طعامًا رخيصًا", "أين المطعم؟"], None),  # Arabic is read without its marks
        (
            normalizers.Replace(Regex("[0-9]"), ""),
            ["route 66 " + "is a long road through the west " * 8],
            None,
        ),  # a few among many letters
        (normalizers.NFKC(), [*THAI, *HINDI, *NUMBERS, "❤️ １２"], None),
        (normalizers.Lowercase(), [*THAI, *HINDI, *NUMBERS], None),
    ],
)
def test_small_parts_without_which_a_text_says_something_else(
    tmp_path: Path, normalizer: normalizers.Normalizer, texts: list[str], what: str | None
) -> None:
    base = train_base(texts * 2, 500)
    base.backend_tokenizer.normalizer = normalizer
    base.save_pretrained(tmp_path)
    lost = what_is_lost(TaskTokenizer.pretrained(tmp_path, ["t"], 0), texts)
    assert lost is None if what is None else lost is not None and what in lost


def test_nothing_to_lose_is_no_loss(tmp_path: Path) -> None:
    assert what_is_lost(byte_level(tmp_path, "GPT2Tokenizer"), ["", "  ", "cat"]) is None
