"""Two tokenisers are equal if they number and split everything alike; the first difference is described."""

from __future__ import annotations

import copy

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ray_l4.text.base_tokenizer import train_base
from ray_l4.text.shared_tokenizer import difference

TEXTS = ["the cat sat on the mat", "a dog sat on the log"]


@pytest.fixture
def base() -> PreTrainedTokenizerBase:
    return train_base(TEXTS, 300)


def test_a_tokeniser_equals_its_copy(base: PreTrainedTokenizerBase) -> None:
    assert difference(base, train_base(TEXTS, 300), TEXTS) is None
    assert difference(base, copy.deepcopy(base), []) is None


def test_different_ids_are_found_without_any_text(base: PreTrainedTokenizerBase) -> None:
    found = difference(base, train_base(["qqq zzz qqq zzz"], 300), [])
    assert found is not None and "tokens differ, such as" in found and "is missing in the" in found


def test_one_token_more_is_a_difference(base: PreTrainedTokenizerBase) -> None:
    more = copy.deepcopy(base)
    more.add_tokens(["<extra>"])
    found = f"such as '<extra>', which is missing in one and is {len(base)} in the other"
    assert difference(base, more, TEXTS) == f"1 of {len(more)} tokens differ, {found}"
    assert difference(more, base, TEXTS) is not None


def test_another_end_of_sequence_token_is_a_difference(base: PreTrainedTokenizerBase) -> None:
    other = copy.deepcopy(base)
    other.eos_token = "a"
    found = difference(base, other, TEXTS)
    assert found == "the end-of-sequence token is '<|endoftext|>' in one and 'a' in the other"


def word_pieces(merges: list[tuple[str, str]]) -> PreTrainedTokenizerBase:
    vocabulary = {token: index for index, token in enumerate(["</s>", "a", "b", "c", "ab", "bc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_the_same_vocabulary_may_split_text_differently() -> None:
    left, right = (word_pieces(order) for order in ([("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")]))
    assert difference(left, right, ["ab bc"]) is None, "both split this alike"
    found = difference(left, right, ["ab bc", "c abc"])
    assert found == "they split text differently, with the same vocabulary: 'ab c' and 'a bc'"


def test_a_text_that_one_truncates_is_a_difference(base: PreTrainedTokenizerBase) -> None:
    """Even if the tokens of one are a prefix of the other's."""
    vocabulary = {"</s>": 0, "a": 1, "b": 2}
    keeps, drops = (Tokenizer(models.BPE(vocabulary, [])) for _ in range(2))
    drops.pre_tokenizer = pre_tokenizers.Split("b", behavior="removed")
    one, other = (PreTrainedTokenizerFast(tokenizer_object=own, eos_token="</s>") for own in (keeps, drops))
    found = difference(one, other, ["aab"])
    assert found == "they split text differently, with the same vocabulary: 'b' and ''"
