"""One checkpoint looked at by itself: its score on a task, and what it makes up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from ray_l4.config.experiment import DataConfig, EvaluationConfig, ReplayConfig, TaskConfig
from ray_l4.errors import DataError, ModelError
from ray_l4.learner.answering import answer, generate_replay
from ray_l4.learner.inspection import evaluate_folder, generate_from_folder
from ray_l4.learner.models import build_model, to_bytes
from ray_l4.seeds import derive
from ray_l4.store.records import write_checkpoint
from ray_l4.text.test_sets import build_test_set
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small

Checkpoint = tuple[Path, PreTrainedModel, TaskTokenizer]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint whose model says ANS often enough that some of what it makes up is valid."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tok = small.tokenizer()
    model = build_model(small.experiment().model, tok, 4).eval()
    model.transformer.wte.weight.data[tok.ans] *= 4
    (folder / "tokenizer").mkdir()
    tok.save(folder / "tokenizer")
    write_checkpoint(folder / "student-0", to_bytes(model), model.config.to_dict(), folder / "tokenizer")
    return folder / "student-0", model, tok


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """The test set of task ``a`` as a folder of one's own data."""
    lines = [json.dumps(row) for row in small.examples("a", 6).to_pylist()]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    return tmp_path


def task(name: str, path: Path) -> TaskConfig:
    return TaskConfig(name=name, path=path, metric="em", train="all", test="all")


def test_a_checkpoint_is_scored_as_during_the_run(checkpoint: Checkpoint, own_data: Path) -> None:
    folder, model, tok = checkpoint
    config = EvaluationConfig(chunk=4)
    scored, tests = evaluate_folder(folder, task("a", own_data), DataConfig(), config, seed=9)
    expected = build_test_set(small.examples("a", 6), "em", tok, 64, config)
    assert tests.prompts.equals(expected.prompts)
    assert scored == answer(model, tok, expected, config, seed=9)


def test_a_task_that_was_never_learned_can_be_scored(checkpoint: Checkpoint, own_data: Path) -> None:
    """It takes a spare token; prompts have none, so answers are those to any other task's questions."""
    folder, _, tok = checkpoint
    assert "new" not in tok.gen
    known, _ = evaluate_folder(folder, task("a", own_data), DataConfig(), EvaluationConfig(), seed=0)
    new, tests = evaluate_folder(folder, task("new", own_data), DataConfig(), EvaluationConfig(), seed=0)
    assert new.predictions == known.predictions
    assert set(tests.prompts["gen"].to_pylist()) == ({tok.spares[0]} if tests.task == "new" else {tok.gen["a"]})


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, own_data: Path) -> None:
    with pytest.raises(ModelError, match="does not contain a tokeniser of ray-l4"):
        evaluate_folder(tmp_path / "missing", task("a", own_data), DataConfig(), EvaluationConfig(), seed=0)
    with pytest.raises(ModelError, match="does not contain a tokeniser of ray-l4"):
        list(generate_from_folder(tmp_path / "missing", "a", 1, ReplayConfig(), seed=0))


def test_missing_data_is_reported_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no test data"):
        evaluate_folder(tmp_path / "missing", task("a", tmp_path), DataConfig(), EvaluationConfig(), seed=0)


def made_up(checkpoint: Checkpoint, count: int, seed: int = 0, **settings: object) -> list[dict[str, str | bool]]:
    config = ReplayConfig.model_validate({"max_length": 24, **settings})
    return list(generate_from_folder(checkpoint[0], "a", count, config, seed))


def test_what_is_made_up_says_whether_replay_would_keep_it(checkpoint: Checkpoint) -> None:
    samples = made_up(checkpoint, 60)
    assert len(samples) == 60
    valid, dropped = ([s for s in samples if s["valid"] is flag] for flag in (True, False))
    assert valid and dropped, "both kinds must occur"
    assert all(set(sample) == {"valid", "question", "answer"} for sample in valid)
    assert all("__ans__" not in f"{sample['question']}{sample['answer']}" for sample in valid)
    for sample in dropped:
        expected = {0: "no answer token"}.get(str(sample["text"]).count("__ans__"), "several answer tokens")
        assert sample["reason"] == expected


def test_the_token_it_was_started_from_is_not_part_of_the_text(checkpoint: Checkpoint) -> None:
    _, model, tok = checkpoint
    seeds = [derive(0, "generate", "a", index) for index in range(20)]
    ids = generate_replay(model, tok, [tok.gen["a"]] * 20, seeds, 24, ReplayConfig())
    for sample, row in zip(made_up(checkpoint, 20), ids, strict=True):
        said = row.tolist()[1:]
        if sample["valid"]:
            middle = said.index(tok.ans)
            parts = {"question": said[:middle], "answer": said[middle + 1 :]}
        else:
            parts = {"text": said}
        for name, part in parts.items():
            assert sample[name] == tok.decode(part).strip()


def test_samples_follow_the_seed_and_not_the_chunks(checkpoint: Checkpoint) -> None:
    expected = made_up(checkpoint, 10)
    assert made_up(checkpoint, 10, chunk=3) == expected
    assert made_up(checkpoint, 5) == expected[:5]
    assert made_up(checkpoint, 10, seed=1) != expected


def test_samples_come_chunk_by_chunk(checkpoint: Checkpoint) -> None:
    """The first ones are there before the last ones are made."""
    stream = generate_from_folder(checkpoint[0], "a", 10**5, ReplayConfig(max_length=8, chunk=2), seed=0)
    assert isinstance(next(stream)["valid"], bool)
    stream.close()  # type: ignore[attr-defined]


def test_a_task_the_checkpoint_does_not_know_cannot_be_made_up(checkpoint: Checkpoint) -> None:
    with pytest.raises(ModelError, match=r"Task 'c' has no token in this tokeniser"):
        list(generate_from_folder(checkpoint[0], "c", 1, ReplayConfig(), seed=0))


def test_more_than_the_model_can_hold_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ModelError, match=r"65 tokens were requested, but the model has 64"):
        made_up(checkpoint, 1, max_length=65)
