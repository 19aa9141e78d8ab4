"""Test sets, the order and length of answers, and pseudo-examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from ray_l4.config.experiment import EvaluationConfig, ReplayConfig
from ray_l4.config.model import ModelConfig
from ray_l4.errors import DataError, ModelError
from ray_l4.learner.answering import answer, decode_answers, generate_replay
from ray_l4.learner.decoding import continue_prompts
from ray_l4.learner.engine import Decoding
from ray_l4.learner.model_config import max_length
from ray_l4.learner.models import build_model
from ray_l4.learner.position_logits import PositionLogits
from ray_l4.metrics.registry import METRICS, Item, score
from ray_l4.seeds import derive
from ray_l4.text.test_sets import RAW_GOLD_METRICS, TestSet, build_items, build_test_set
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small

POSITIONS = 64


@pytest.fixture(scope="module")
def tok() -> TaskTokenizer:
    return small.tokenizer()


@pytest.fixture(scope="module")
def model(tok: TaskTokenizer) -> PreTrainedModel:
    return small.attentive(tok)


@pytest.fixture
def reach(model: PreTrainedModel) -> Iterator[list[int]]:
    """A list of the largest position that each call of the model used."""
    used: list[int] = []
    hook = model.transformer.wpe.register_forward_pre_hook(lambda module, ids: used.append(int(ids[0].max())))
    yield used
    hook.remove()


def questions(tok: TaskTokenizer, count: int = 10, metric: str = "em", **config: object) -> TestSet:
    settings = EvaluationConfig.model_validate(config)
    return build_test_set(small.examples("a", count), metric, tok, POSITIONS, settings)


def rows(*texts: tuple[str, str, list[str]]) -> pa.Table:
    """Make examples of task ``a`` from (context, question, references)."""
    return pa.Table.from_pylist(
        [
            {
                "context": context,
                "question": question,
                "answer": references[0],
                "references": references,
                "task": "a",
                "sample_id": f"a_{index}",
                "meta": "m",
            }
            for index, (context, question, references) in enumerate(texts)
        ]
    )


# --- test sets


def test_a_test_set_has_a_prompt_for_every_item(tok: TaskTokenizer) -> None:
    tests = questions(tok)
    examples = small.examples("a", 10).to_pylist()
    assert (tests.task, tests.metric, tests.max_length) == ("a", "em", POSITIONS)
    assert tests.prompts["sample_id"].to_pylist() == [item.sample_id for item in tests.items]
    for example, ids, item in zip(examples, tests.prompts["ids"].to_pylist(), tests.items, strict=True):
        assert ids == [*tok.encode(example["context"]), *tok.encode(example["question"]), tok.ans]
        assert item == Item("", (example["answer"],), example["sample_id"], "")


def test_answers_are_limited_to_the_longest_reference(tok: TaskTokenizer) -> None:
    longest = max(len(tok.encode(text)) for text in small.examples("a", 10)["answer"].to_pylist())
    assert questions(tok).max_new_tokens == longest
    assert questions(tok, max_new_tokens=3).max_new_tokens == 3


def test_a_limit_selects_the_first_examples(tok: TaskTokenizer) -> None:
    tests = questions(tok, limit=4)
    assert [item.sample_id for item in tests.items] == [f"a-{index}" for index in range(4)]
    assert tests.prompts.num_rows == 4
    assert len(questions(tok, limit=400).items) == 10


def test_a_question_that_leaves_no_room_is_refused(tok: TaskTokenizer) -> None:
    with pytest.raises(DataError, match="a_0: question of"):
        build_test_set(rows(("", "word1 " * 80, ["x"])), "em", tok, POSITIONS, EvaluationConfig())


def test_a_task_without_a_token_is_refused(tok: TaskTokenizer) -> None:
    with pytest.raises(ModelError, match="Task 'c' has no token"):
        build_test_set(small.examples("c", 2), "em", tok, POSITIONS, EvaluationConfig())


def test_gold_answers_are_cleaned_like_predictions(tok: TaskTokenizer) -> None:
    """Both sides pass through the tokeniser, except for gold files of raw strings (REFERENCE.md#decoding)."""
    examples = rows(("word1", "q", ["  i do not go .", "word1 , word2"]))
    for metric in METRICS:
        (item,) = build_items(examples, metric, tok)
        expected = (
            ("  i do not go .", "word1 , word2") if metric in RAW_GOLD_METRICS else ("i don't go.", "word1, word2")
        )
        assert item.references == expected, metric
        assert (item.sample_id, item.meta) == ("a_0", "m")
    assert set(METRICS) >= RAW_GOLD_METRICS


# --- answers


def test_answers_are_in_the_order_of_their_questions(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    """Prompts are decoded in the order of their lengths, but answers are returned in the order of the items."""
    tests = questions(tok, count=13)
    lengths = [len(ids) for ids in tests.prompts["ids"].to_pylist()]
    assert lengths != sorted(lengths)
    scored = answer(model, tok, tests, EvaluationConfig(chunk=4), seed=0)
    expected = [
        tok.decode(continue_prompts(model, tok, [ids], tests.max_new_tokens)[0]).strip()
        for ids in tests.prompts["ids"].to_pylist()
    ]
    assert scored.predictions == expected
    assert len(set(expected)) > 6, "a model that says the same to all tests nothing"


@pytest.mark.parametrize("top_k", [1, 10])
def test_answers_do_not_depend_on_the_size_of_the_chunks(
    model: PreTrainedModel, tok: TaskTokenizer, top_k: int
) -> None:
    tests = questions(tok, count=9)
    one, other = (answer(model, tok, tests, EvaluationConfig(chunk=c, top_k=top_k), seed=3) for c in (2, 64))
    assert one == other


def test_sampled_answers_follow_the_seed(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    tests, config = questions(tok), EvaluationConfig(top_k=20)
    first, again, other = (answer(model, tok, tests, config, seed).predictions for seed in (1, 1, 2))
    greedy = answer(model, tok, tests, EvaluationConfig(), seed=1).predictions
    assert first == again
    assert first != other
    assert first != greedy
    assert answer(model, tok, tests, EvaluationConfig(), seed=2).predictions == greedy, "greedy draws nothing"


@pytest.mark.parametrize("metric", ["em", "nf1", "avg_rouge"])
def test_scores_equal_those_of_the_metric(model: PreTrainedModel, tok: TaskTokenizer, metric: str) -> None:
    tests = questions(tok, metric=metric)
    scored = answer(model, tok, tests, EvaluationConfig(), seed=0)
    items = [
        Item(prediction, (example["answer"],), example["sample_id"])
        for prediction, example in zip(scored.predictions, small.examples("a", 10).to_pylist(), strict=True)
    ]
    assert scored.values == score(metric, items)
    assert scored.headline == METRICS[metric].headline


def test_right_answers_score_100(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    """The references are the model's own answers, so em is 100 only if each answer meets its own reference."""
    tests = questions(tok, count=8)
    said = answer(model, tok, tests, EvaluationConfig(chunk=3), seed=0).predictions
    examples = small.examples("a", 8)
    gold = examples.set_column(examples.column_names.index("references"), "references", [[[text] for text in said]])
    own = TestSet(tests.task, "nem", tests.prompts, build_items(gold, "nem", tok), tests.max_new_tokens, POSITIONS)
    assert answer(model, tok, own, EvaluationConfig(), seed=0).values["nem"] == 100.0


@pytest.mark.parametrize(("reserve", "expected"), [(1, 1), (5, 5)])
def test_long_contexts_are_truncated_to_the_reserve(
    model: PreTrainedModel, tok: TaskTokenizer, reach: list[int], reserve: int, expected: int
) -> None:
    """With a reserve of 1, as in the reference implementation, an answer has one token (REFERENCE.md#decoding)."""
    config = EvaluationConfig(reserve=reserve, max_new_tokens=30)
    long = rows(*[(" ".join(small.WORDS * 4), "how ?", [" ".join(small.WORDS)])] * 2)
    tests = build_test_set(long, "em", tok, POSITIONS, config)
    assert [len(ids) for ids in tests.prompts["ids"].to_pylist()] == [POSITIONS - reserve] * 2
    calls = len(reach)
    answer(model, tok, tests, config, seed=0)
    assert len(reach) - calls == 1 + expected, "one call of the model for the prompt, and one for each new token"
    assert max(reach) <= POSITIONS - 1


def test_no_answer_exceeds_the_positions_of_the_model(
    model: PreTrainedModel, tok: TaskTokenizer, reach: list[int]
) -> None:
    tests = questions(tok, count=12, max_new_tokens=1000)
    answer(model, tok, tests, EvaluationConfig(chunk=5), seed=0)
    assert POSITIONS - 8 < max(reach) <= POSITIONS - 2, "the last token is not fed back"


def lengths_with_little_room(tok: TaskTokenizer, count: int) -> TestSet:
    """Prompts that leave less and less room: their contexts grow, and only one token is kept free."""
    texts = [(" ".join(small.WORDS * 4)[: 30 * number], "how ?", ["x"]) for number in range(1, count + 1)]
    config = EvaluationConfig(reserve=1, max_new_tokens=40)
    return build_test_set(rows(*texts), "em", tok, POSITIONS, config)


@pytest.mark.parametrize("top_k", [1, 10])
def test_the_limit_of_an_answer_is_the_room_of_its_own_prompt(
    model: PreTrainedModel, tok: TaskTokenizer, reach: list[int], top_k: int
) -> None:
    tests = lengths_with_little_room(tok, 9)
    prompts = tests.prompts["ids"].to_pylist()
    room = [min(40, POSITIONS - len(prompt)) for prompt in prompts]
    assert len(set(room)) > 4 and min(room) == 1
    config = EvaluationConfig(reserve=1, max_new_tokens=40, top_k=top_k)
    alone = []
    for index, (prompt, limit) in enumerate(zip(prompts, room, strict=True)):
        [new] = continue_prompts(model, tok, [prompt], limit, Decoding(top_k), seeds=[derive(3, "answer", "a", index)])
        alone.append(tok.decode(new).strip())
    for chunk in (1, 4, 9):
        decoded = answer(model, tok, tests, config.model_copy(update={"chunk": chunk}), seed=3).predictions
        assert decoded == alone, chunk
    assert max(reach) <= POSITIONS - 2


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_answers_with_little_room_do_not_depend_on_the_batches(
    model: PreTrainedModel, tok: TaskTokenizer, data: st.DataObject
) -> None:
    tests = lengths_with_little_room(tok, 9)
    config = EvaluationConfig()
    order = data.draw(st.permutations(range(9)))
    cuts = sorted(data.draw(st.sets(st.integers(1, 8), max_size=8)))
    batches = [order[start:end] for start, end in zip([0, *cuts], [*cuts, 9], strict=True)]
    whole = decode_answers(model, tok, tests, config, 0, [list(range(9))])
    assert decode_answers(model, tok, tests, config, 0, batches) == whole


# --- replay


def test_pseudo_examples_start_with_their_task_token_and_fit_the_limit(
    model: PreTrainedModel, tok: TaskTokenizer, reach: list[int]
) -> None:
    gens = [tok.gen["a"], tok.gen["b"]] * 10
    samples = generate_replay(model, tok, gens, range(20), POSITIONS, ReplayConfig())
    assert [int(ids[0]) for ids in samples] == gens
    assert all(ids.dtype == np.int32 and ids.ndim == 1 and 1 <= len(ids) <= POSITIONS for ids in samples)
    assert max(len(ids) for ids in samples) == POSITIONS
    assert max(reach) == POSITIONS - 2
    assert all(tok.eos not in ids[1:].tolist() for ids in samples)
    assert len({tuple(ids.tolist()) for ids in samples}) == 20


def test_a_shorter_limit_is_respected(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    samples = generate_replay(model, tok, [tok.gen["a"]] * 5, range(5), 7, ReplayConfig())
    assert max(len(ids) for ids in samples) == 7


def test_pseudo_examples_do_not_depend_on_how_they_are_split(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    gens, seeds, config = [tok.gen["a"]] * 4 + [tok.gen["b"]] * 3, range(7), ReplayConfig()
    whole = generate_replay(model, tok, gens, seeds, 30, config)
    parts = [
        ids
        for part in (slice(0, 3), slice(3, 4), slice(4, 7))
        for ids in generate_replay(model, tok, gens[part], seeds[part], 30, config)
    ]
    assert [ids.tolist() for ids in whole] == [ids.tolist() for ids in parts]


def test_temperature_and_top_k_affect_replay(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    def variety(**settings: float) -> int:
        config = ReplayConfig.model_validate(settings)
        samples = generate_replay(model, tok, [tok.gen["a"]] * 40, range(40), 2, config)
        return len({tuple(ids.tolist()) for ids in samples})

    assert variety(top_k=1) == 1
    assert variety(top_k=20, temperature=1e-5) == 1
    assert variety(top_k=3, temperature=10.0) == 3
    assert variety(top_k=20, temperature=10.0) > 12


@pytest.mark.parametrize("ban", [False, True])
def test_task_tokens_can_be_banned_from_replay_and_answers(tok: TaskTokenizer, ban: bool) -> None:
    """The model generates nothing but task tokens unless they are banned."""
    model = build_model(small.experiment().model, tok, 5).eval()
    with torch.no_grad():
        direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
        model.transformer.ln_f.bias.copy_(direction)
        model.transformer.wte.weight[tok.task_tokens] = direction
    samples = generate_replay(model, tok, [tok.gen["a"]] * 4, range(4), 12, ReplayConfig(ban_task_tokens=ban))
    said = {token for ids in samples for token in ids[1:].tolist()}
    assert [int(ids[0]) for ids in samples] == [tok.gen["a"]] * 4, "the first token is given, not chosen"
    config = EvaluationConfig(ban_task_tokens=ban, max_new_tokens=4)
    answers = " ".join(answer(model, tok, questions(tok, max_new_tokens=4), config, seed=0).predictions)
    names = ["__a__", "__b__", "__spare_0__", "__spare_1__"]
    if ban:
        assert not said & set(tok.task_tokens)
        assert not any(name in answers for name in names)
    else:
        assert said & set(tok.task_tokens)
        assert any(name in answers for name in names)


# --- a real model


@pytest.mark.shared_data
def test_a_real_model_answers_and_generates(shared_data: Path) -> None:
    """stories260K: a Llama of 260,000 weights that was trained on children's stories."""
    folder = shared_data / "models" / "stories260K"
    tok = TaskTokenizer.pretrained(folder, ["a"], 2)
    model = build_model(ModelConfig(name=str(folder)), tok, seed=0).eval()
    assert model.get_input_embeddings().num_embeddings == tok.size == 512 + 6
    assert max_length(model.config, None) == 512
    assert PositionLogits(model).direct

    story = rows(
        ("", "Once upon a time, there was a little", ["girl named Lily."]), ("One day, a cat", "saw a", ["dog"])
    )
    prompts = [ids[:-1] for ids in build_test_set(story, "em", tok, 512, EvaluationConfig()).prompts["ids"].to_pylist()]
    first, _ = continue_prompts(model, tok, prompts, 12)
    assert tok.decode(first).startswith(" girl named Lily")

    scored = answer(model, tok, build_test_set(story, "em", tok, 512, EvaluationConfig()), EvaluationConfig(), seed=0)
    assert len(scored.predictions) == 2
    assert 0 <= scored.values["em"] <= 100
    samples = generate_replay(model, tok, [tok.gen["a"]] * 3, range(3), 40, ReplayConfig())
    assert [int(ids[0]) for ids in samples] == [tok.gen["a"]] * 3
    assert all(len(ids) <= 40 for ids in samples)
