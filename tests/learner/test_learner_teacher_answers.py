"""A teacher's answers to training examples: order, length, and independence of the batch (REFERENCE.md#seq-kd)."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from transformers import PreTrainedModel

from ray_l4.config.experiment import EvaluationConfig, TeacherConfig
from ray_l4.learner.answering import answer, answer_training
from ray_l4.learner.decoding import continue_prompts
from ray_l4.text.assembly import assemble
from ray_l4.text.test_sets import build_test_set
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


def training(tok: TaskTokenizer, *texts: tuple[str, str, str]) -> pa.Table:
    """Make training examples of task ``a`` from (context, question, answer)."""
    rows = [
        {"context": context, "question": question, "answer": answer, "task": "a", "sample_id": f"a_{index}"}
        for index, (context, question, answer) in enumerate(texts)
    ]
    table, dropped = assemble(pa.Table.from_pylist(rows), tok, POSITIONS)
    assert not dropped
    return table


def test_answers_are_in_the_order_of_the_examples(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    table, _ = assemble(small.examples("a", 12), tok, POSITIONS)
    longest = max(len(tok.encode(text)) for text in small.examples("a", 12)["answer"].to_pylist())
    answers = answer_training(model, tok, table, POSITIONS, TeacherConfig(), seed=0)
    assert len(set(answers)) > 6, "answers differ, so that a wrong place would show"
    for row, text in zip(table.to_pylist(), answers, strict=True):
        (new,) = continue_prompts(model, tok, [row["ids"][: row["prompt_length"]]], longest)
        assert text == tok.decode(new).strip()


def test_a_teacher_answers_training_questions_like_test_questions(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    examples = small.examples("a", 12)
    table, _ = assemble(examples, tok, POSITIONS)
    tests = build_test_set(examples, "em", tok, POSITIONS, EvaluationConfig())
    scored = answer(model, tok, tests, EvaluationConfig(), seed=0)
    assert answer_training(model, tok, table, POSITIONS, TeacherConfig(), seed=0) == scored.predictions


@pytest.mark.parametrize("config", [TeacherConfig(), TeacherConfig(top_k=20)], ids=["greedy", "sampled"])
def test_an_answer_does_not_depend_on_which_examples_are_answered_together(
    model: PreTrainedModel, tok: TaskTokenizer, config: TeacherConfig
) -> None:
    """One of the examples has the longest answer, and one leaves almost no room for its own."""
    table = training(
        tok,
        ("word1", "how ?", "word1 word2 word3 word4 word5"),
        (" ".join(small.WORDS), "how ?", "word9"),
        *((f"word{i}", "how ?", "word1") for i in range(5)),
    )
    whole = answer_training(model, tok, table, POSITIONS, config, seed=3)
    for size in (1, 3, 4):
        parts = [range(start, min(start + size, 7)) for start in range(0, 7, size)]
        assert [a for part in parts for a in answer_training(model, tok, table, POSITIONS, config, 3, part)] == whole
    assert answer_training(model, tok, table, POSITIONS, config, 3, range(0)) == []


def test_a_long_context_shortens_only_its_own_answer(
    model: PreTrainedModel, tok: TaskTokenizer, reach: list[int]
) -> None:
    table = training(
        tok,
        (" ".join(small.WORDS), "how ?", "word9"),
        ("word1", "how ?", "word1 word2 word3 word4 word5"),
        ("word2", "how ?", "word1"),
    )
    lengths = table["prompt_length"].to_pylist()
    rooms, longest = [POSITIONS - length for length in lengths], len(tok.encode("word1 word2 word3 word4 word5"))
    assert rooms[0] < longest < rooms[1]
    texts = answer_training(model, tok, table, POSITIONS, TeacherConfig(), seed=0)
    expected = [
        continue_prompts(model, tok, [row["ids"][: row["prompt_length"]]], min(longest, room))[0]
        for row, room in zip(table.to_pylist(), rooms, strict=True)
    ]
    assert texts == [tok.decode(ids).strip() for ids in expected]
    assert max(map(len, expected)) == longest, "a teacher that never ends is cut at the longest true answer"
    assert max(reach) <= POSITIONS - 2


def test_a_sampled_answer_follows_from_the_seed_and_the_example(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    table = training(tok, *[("word1", "how ?", "word1 word2 word3")] * 8)
    one, again, other = (
        answer_training(model, tok, table, POSITIONS, TeacherConfig(top_k=20, temperature=5.0), seed)
        for seed in (0, 0, 1)
    )
    assert one == again != other
    assert len(set(one)) > 4, "equal inputs get different answers, as in the published files (REFERENCE.md#seq-kd)"
    greedy = answer_training(model, tok, table, POSITIONS, TeacherConfig(), 0)
    assert len(set(greedy)) == 1
