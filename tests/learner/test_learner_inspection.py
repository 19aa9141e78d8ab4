"""Operations on a single checkpoint: scoring a task and generating pseudo-examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ray_l4.config.experiment import EvaluationConfig, ReplayConfig
from ray_l4.errors import ConfigError, ModelError
from ray_l4.learner.answering import answer, generate_replay
from ray_l4.learner.inspection import LoadedModel, device_named
from ray_l4.learner.models import build_model, load_folder, to_bytes
from ray_l4.seeds import derive
from ray_l4.store.records import write_checkpoint
from ray_l4.text.test_sets import build_test_set
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small

Checkpoint = tuple[Path, PreTrainedModel, TaskTokenizer]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint whose model generates ANS often enough that some pseudo-examples are valid."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tok = small.tokenizer()
    model = build_model(small.experiment().model, tok, 4).eval()
    model.transformer.wte.weight.data[tok.ans] *= 4
    (folder / "tokenizer").mkdir()
    tok.save(folder / "tokenizer")
    write_checkpoint(folder / "student-0", to_bytes(model), model.config.to_dict(), folder / "tokenizer")
    return folder / "student-0", model, tok


def loaded(folder: Path) -> LoadedModel:
    return LoadedModel(*load_folder(folder), small.experiment().model)


def test_a_checkpoint_is_scored_as_during_the_run(checkpoint: Checkpoint) -> None:
    folder, model, tok = checkpoint
    config = EvaluationConfig(chunk=4, top_k=3)
    tests = build_test_set(small.examples("a", 6), "em", tok, 64, config)
    assert loaded(folder).answer(tests, config, seed=9) == answer(model, tok, tests, config, seed=9)


def test_the_arithmetic_is_that_of_the_run(checkpoint: Checkpoint) -> None:
    folder, _, tok = checkpoint
    config = EvaluationConfig(chunk=4)
    tests = build_test_set(small.examples("a", 2), "em", tok, 64, config)
    seen = []

    def noted(*arguments: object) -> None:
        seen.append(torch.is_autocast_enabled("cpu"))

    held = loaded(folder)
    held.model.register_forward_pre_hook(noted)
    for precision in ("float32", "bfloat16"):
        seen.clear()
        own = held.settings.model_copy(update={"precision": precision})
        replace(held, settings=own).answer(tests, config, seed=9)
        assert set(seen) == {precision == "bfloat16"}


def test_a_task_that_was_not_learned_gets_a_spare_token(checkpoint: Checkpoint) -> None:
    folder, _, tok = checkpoint
    assert "new" not in tok.gen
    assert loaded(folder).knowing("new").tokenizer.gen_of("new") == tok.spares[0]
    assert loaded(folder).knowing("a").tokenizer.gen_of("a") == tok.gen["a"]


def test_the_device_is_a_gpu_only_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert device_named("auto").type == kind
        assert device_named("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="--device cuda: PyTorch sees no GPU"):
        device_named("cuda")


def made_up(checkpoint: Checkpoint, count: int, seed: int = 0, **settings: object) -> list[dict[str, str | bool]]:
    config = ReplayConfig.model_validate({"max_length": 24, **settings})
    longest = config.max_length or 64
    return list(loaded(checkpoint[0]).generate("a", count, longest, config, seed))


def test_generated_examples_say_whether_replay_would_keep_them(checkpoint: Checkpoint) -> None:
    samples = made_up(checkpoint, 60)
    assert len(samples) == 60
    valid, dropped = ([s for s in samples if s["valid"] is flag] for flag in (True, False))
    assert valid and dropped, "both kinds must occur"
    assert all(set(sample) == {"valid", "question", "answer"} for sample in valid)
    assert all("__ans__" not in f"{sample['question']}{sample['answer']}" for sample in valid)
    for sample in dropped:
        expected = {0: "no answer token"}.get(str(sample["text"]).count("__ans__"), "several answer tokens")
        assert sample["reason"] == expected


def test_the_initial_task_token_is_not_part_of_the_text(checkpoint: Checkpoint) -> None:
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


def test_samples_depend_on_the_seed_and_not_on_chunks(checkpoint: Checkpoint) -> None:
    expected = made_up(checkpoint, 10)
    assert made_up(checkpoint, 10, chunk=3) == expected
    assert made_up(checkpoint, 5) == expected[:5]
    assert made_up(checkpoint, 10, seed=1) != expected


def test_samples_are_yielded_chunk_by_chunk(checkpoint: Checkpoint) -> None:
    """The first samples are yielded before the last ones are generated."""
    stream = loaded(checkpoint[0]).generate("a", 10**5, 8, ReplayConfig(chunk=2), seed=0)
    assert isinstance(next(stream)["valid"], bool)
    stream.close()  # type: ignore[attr-defined]


def test_generating_for_an_unknown_task_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ModelError, match=r"Task 'c' has no token in this tokeniser"):
        list(loaded(checkpoint[0]).generate("c", 1, 8, ReplayConfig(), seed=0))
