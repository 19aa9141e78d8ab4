"""The tokeniser: added tokens, training, saving, and mistakes of users."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, ByT5Tokenizer, GPT2Config, PreTrainedTokenizerFast

from ray_l4.errors import ConfigError, ModelError
from ray_l4.text.tokenizer import TASK_TOKENS_FILE, TaskTokenizer

CORPUS = ["the cat sat on the mat", "a cat and a hat", "what is the change in state?"]


def test_added_tokens_follow_the_base_vocabulary_in_order(tokenizer: TaskTokenizer) -> None:
    base = tokenizer.ans
    assert (tokenizer.ans, tokenizer.pad, tokenizer.unk) == (base, base + 1, base + 2)
    assert tokenizer.gen == {"woz.en": base + 3, "sst": base + 4}
    assert tokenizer.spares == (base + 5, base + 6)
    assert tokenizer.size == base + 7 == len(tokenizer.hf)
    assert tokenizer.hf.convert_ids_to_tokens([base, base + 3, base + 5]) == ["__ans__", "__woz.en__", "__spare_0__"]
    assert tokenizer.eos == tokenizer.hf.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.hf.pad_token_id == tokenizer.pad


def test_training_depends_on_the_texts_alone() -> None:
    shuffled = CORPUS * 3
    random.Random(0).shuffle(shuffled)
    one = TaskTokenizer.trained(CORPUS * 3, 300, ["t"], 0)
    other = TaskTokenizer.trained(iter(shuffled), 300, ["t"], 0)
    assert one.hf.get_vocab() == other.hf.get_vocab()
    assert one.hf.backend_tokenizer.to_str() == other.hf.backend_tokenizer.to_str()
    assert one.ans <= 300
    assert len(one.encode("the cat")) < len(one.encode("xyz"))


def test_training_sees_the_leading_space_of_the_first_word() -> None:
    assert len(TaskTokenizer.trained(["north"] * 20, 270, ["t"], 0).encode("north")) == 1


@pytest.mark.parametrize(("texts", "vocabulary", "message"), [([], 300, "no text"), (["a"], 256, "at least 257")])
def test_training_needs_text_and_room(texts: list[str], vocabulary: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        TaskTokenizer.trained(texts, vocabulary, ["t"], 0)
    with pytest.raises(ModelError, match="no text"):
        TaskTokenizer.trained([" ", "\n"], 300, ["t"], 0)


def test_a_spare_token_goes_to_a_new_task_and_the_size_stays(tokenizer: TaskTokenizer) -> None:
    first, second = tokenizer.spares
    grown = tokenizer.assign("late")
    assert grown.gen == {**tokenizer.gen, "late": first}
    assert grown.spares == (second,)
    assert grown.size == tokenizer.size
    assert "late" not in tokenizer.gen
    assert grown.assign("late") is grown
    assert grown.decode([first]) == " __spare_0__"
    full = grown.assign("later")
    with pytest.raises(ModelError, match=r"'too late'.*spare_task_tokens"):
        full.assign("too late")


def test_tasks_may_share_the_token_of_the_first(tokenizer: TaskTokenizer, tmp_path: Path) -> None:
    """One token for all (REFERENCE.md#other-modes).

    Every task still has its own token in the vocabulary, which keeps its size.
    """
    own, shared = (TaskTokenizer.trained(CORPUS, 300, ["x", "y", "z"], 2, shared=shared) for shared in (False, True))
    assert len(set(own.gen.values())) == 3
    assert shared.gen == dict.fromkeys("xyz", own.gen["x"])
    assert (shared.size, shared.task_tokens) == (own.size, own.task_tokens)
    assert shared.spares == (*own.spares, own.gen["y"], own.gen["z"])
    assert shared.encode("__y__") == own.encode("__y__")
    assert shared.decode([own.gen["y"]]) == own.decode([own.gen["y"]]) == " __y__"
    shared.save(tmp_path)
    _same(shared, TaskTokenizer.load(tmp_path))
    again = TaskTokenizer.pretrained(tmp_path, ["x", "y", "z"], 2, shared=True)
    assert (again.gen, again.size) == (shared.gen, shared.size)


def test_task_tokens_include_the_spare_ones(tokenizer: TaskTokenizer) -> None:
    first = tokenizer.gen["woz.en"]
    assert tokenizer.task_tokens == [first, first + 1, first + 2, first + 3]
    assert tokenizer.assign("late").task_tokens == tokenizer.task_tokens
    assert not {tokenizer.ans, tokenizer.pad, tokenizer.unk, tokenizer.eos} & set(tokenizer.task_tokens)


@pytest.mark.parametrize("name", ["ans", "pad", "unk", "spare_0"])
def test_a_task_cannot_take_the_name_of_another_token(tokenizer: TaskTokenizer, name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'"):
        TaskTokenizer.trained(CORPUS, 300, [name], 0)
    with pytest.raises(ConfigError, match=f"'{name}'"):
        tokenizer.assign(name)


def test_an_unknown_task_names_the_nearest(tokenizer: TaskTokenizer) -> None:
    assert tokenizer.gen_of("sst") == tokenizer.gen["sst"]
    with pytest.raises(ModelError, match=r"Did you mean 'woz\.en'"):
        tokenizer.gen_of("woz")
    with pytest.raises(ModelError, match=r"'woz' has no token in this tokeniser. It has a token for no task\."):
        TaskTokenizer.trained(CORPUS, 300, [], 0).gen_of("woz")


def _same(one: TaskTokenizer, other: TaskTokenizer) -> None:
    for name in ("ans", "pad", "unk", "eos", "gen", "spares", "size"):
        assert getattr(one, name) == getattr(other, name), name
    ids = one.encode("what is  the\nstate?\u00e9 __ans__ a cat do not")
    assert other.encode("what is  the\nstate?\u00e9 __ans__ a cat do not") == ids
    assert other.decode(ids) == one.decode(ids)


def test_saving_and_loading_is_the_identity(tokenizer: TaskTokenizer, tmp_path: Path) -> None:
    grown = tokenizer.assign("late")
    # As in a checkpoint: the model's config.json must not change how the tokeniser is read.
    GPT2Config().save_pretrained(tmp_path)
    grown.save(tmp_path)
    _same(grown, TaskTokenizer.load(tmp_path))
    _same(grown, pickle.loads(pickle.dumps(grown)))
    text = "a cheap restaurant"
    assert AutoTokenizer.from_pretrained(str(tmp_path))(f" {text}")["input_ids"] == grown.encode(text)


def test_loading_says_what_is_missing(tokenizer: TaskTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=TASK_TOKENS_FILE):
        TaskTokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / TASK_TOKENS_FILE).write_text(json.dumps({"gen": {}}), encoding="utf-8")
    with pytest.raises(ModelError, match="spares"):
        TaskTokenizer.load(tmp_path)


@pytest.mark.parametrize("wrong", [-1, "size", 10**30, 1.0, "7", None])
def test_ids_that_are_no_tokens_are_refused(tokenizer: TaskTokenizer, tmp_path: Path, wrong: object) -> None:
    tokenizer.save(tmp_path)
    token = tokenizer.size if wrong == "size" else wrong
    for record in ({"gen": {"sst": token}, "spares": []}, {"gen": {}, "spares": [token]}):
        (tmp_path / TASK_TOKENS_FILE).write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(ModelError, match="ids of its tokens"):
            TaskTokenizer.load(tmp_path)


def test_a_saved_tokeniser_serves_as_the_base_of_another_stream(tokenizer: TaskTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = TaskTokenizer.pretrained(tmp_path, ["sst", "new"], spare=2)
    first, *rest = tokenizer.spares
    assert again.ans == tokenizer.ans
    assert again.gen == {**tokenizer.gen, "new": first}, "the tasks of before keep theirs"
    assert (list(again.spares), again.size) == (rest, tokenizer.size)
    assert again.fresh == {first}


def test_new_tokens_are_added_once_no_spare_one_is_left(tokenizer: TaskTokenizer, tmp_path: Path) -> None:
    tokenizer.assign("late").save(tmp_path)
    again = TaskTokenizer.pretrained(tmp_path, ["one", "two", "late", "three"], spare=2)
    late, last = tokenizer.spares
    assert again.gen == {
        **tokenizer.gen,
        "late": late,
        "one": last,
        "two": tokenizer.size,
        "three": tokenizer.size + 1,
    }
    assert (again.spares, again.size, again.fresh) == ((), tokenizer.size + 2, {last, again.gen["two"], again.size - 1})
    assert again.decode([again.gen["two"]]) == " __two__"
    again.save(tmp_path / "again")
    _same(again, TaskTokenizer.load(tmp_path / "again"))


def test_a_name_that_went_to_another_task_is_not_shared(tmp_path: Path) -> None:
    """With one token for all tasks, y's own is spare, and another task may get it."""
    TaskTokenizer.trained(CORPUS, 300, ["x", "y"], 0, shared=True).save(tmp_path)
    first = TaskTokenizer.pretrained(tmp_path, ["z"], 0)
    first.save(tmp_path / "z")
    grown = TaskTokenizer.pretrained(tmp_path / "z", ["w", "q"], 0)
    assert len({grown.gen[task] for task in "xzwq"}) == 4


def test_a_checkpoint_may_share_the_token_of_its_first_task(tokenizer: TaskTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    shared = TaskTokenizer.pretrained(tmp_path, ["new", "newer"], 0, shared=True)
    assert shared.gen == {**tokenizer.gen, **dict.fromkeys(["new", "newer"], tokenizer.gen["woz.en"])}
    with pytest.raises(ConfigError, match="'ans'"):
        TaskTokenizer.pretrained(tmp_path, ["ans"], 0, shared=True)


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder/at-all"])
def test_a_model_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match=rf"^model\.name: .*{name}.*"):
        TaskTokenizer.pretrained(name, ["t"], 0)


def test_a_damaged_tokeniser_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    with pytest.raises(ModelError, match="Cannot load a tokeniser"):
        TaskTokenizer.pretrained(tmp_path, ["t"], 0)


def test_a_folder_without_vocabulary_is_not_an_empty_tokeniser(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="empty vocabulary"):
        TaskTokenizer.pretrained(tmp_path, ["t"], 0)


def test_a_tokeniser_without_end_of_sequence(tmp_path: Path) -> None:
    bare = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="?").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="end-of-sequence"):
        TaskTokenizer.pretrained(tmp_path, ["t"], 0)


def test_a_slow_tokeniser_is_refused(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no fast version"):
        TaskTokenizer.pretrained(tmp_path, ["t"], 0)


@pytest.mark.shared_data
def test_gpt2_ids(shared_data: Path) -> None:
    gpt2 = TaskTokenizer.pretrained(shared_data / "tokenizer" / "gpt2", ["woz.en", "sst"], spare=1)
    assert (gpt2.eos, gpt2.ans, gpt2.pad, gpt2.unk) == (50256, 50257, 50258, 50259)
    assert gpt2.gen == {"woz.en": 50260, "sst": 50261}
    assert (gpt2.spares, gpt2.size) == ((50262,), 50263)
    assert gpt2.encode("Hello world") == [18435, 995]
    assert gpt2.hf("Hello world")["input_ids"] == [15496, 995]
    assert gpt2.encode("a __ans__ b") == [257, 11593, 504, 834, 275]
    assert gpt2.encode("<|endoftext|>") == [1279, 91, 437, 1659, 5239, 91, 29]
    assert gpt2.decode(gpt2.encode("I do not know, caf\u00e9 .")) == " I don't know, caf\u00e9."


@pytest.mark.shared_data
@pytest.mark.parametrize("text", ["Once upon a time", "  Lily's  dog\nran ", "caf\u00e9 \u65e5\u672c \U0001f600", "x"])
def test_llama_style_tokeniser_round_trip(shared_data: Path, tmp_path: Path, text: str) -> None:
    llama = TaskTokenizer.pretrained(shared_data / "models" / "stories260K", ["t"], spare=1)
    assert (llama.eos, llama.ans, llama.gen, llama.size) == (2, 512, {"t": 515}, 517)
    ids = llama.encode(text)
    # Neither a start token nor a doubled space marker: the first token is the word itself.
    assert ids == llama.hf(text.strip(), add_special_tokens=False)["input_ids"]
    assert llama.encode("") == []
    assert llama.decode(ids) == f" {text.strip()}"
    assert llama.decode([*ids, llama.ans, *ids]) == f" {text.strip()} __ans__ {text.strip()}"
    llama.save(tmp_path)
    _same(llama, TaskTokenizer.load(tmp_path))
