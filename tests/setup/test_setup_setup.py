"""From an experiment on one's own data to what every worker needs, and what is refused before any process starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, DataError, ModelError
from ray_l4.learner.models import build_model
from ray_l4.setup.setup import Setup, build_tokenizer, prepare
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small

FROM_SCRATCH = {"layers": 1, "width": 32, "heads": 2, "positions": 64, "vocabulary": 320}


def write(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks, each with 12 training and 5 test examples."""
    for name in ("a", "b"):
        for split, count, seed in (("train", 12, 0), ("test", 5, 1)):
            write(tmp_path / name, split, small.examples(name, count, seed).to_pylist())
    return tmp_path


def experiment(folder: Path, **changes: Any) -> ExperimentConfig:
    sections: dict[str, Any] = {
        "stream": [{"name": name, "path": str(folder / name), "metric": "em"} for name in ("a", "b")],
        "model": {"from_scratch": FROM_SCRATCH, "spare_task_tokens": 1},
    }
    return ExperimentConfig.model_validate(sections | changes)


def test_everything_workers_need_is_there(data: Path) -> None:
    setup = prepare(experiment(data, peers={"count": 3}))
    assert setup.tasks == ("a", "b") and setup.items == ["a", "b"]
    assert (setup.method.name, setup.topology.size, setup.max_length) == ("l4", 3, 64)
    assert {name: table.num_rows for name, table in setup.training.items()} == {"a": 12, "b": 12}
    assert {name: len(tests.items) for name, tests in setup.tests.items()} == {"a": 5, "b": 5}
    assert {name: tests.metric for name, tests in setup.tests.items()} == {"a": "em", "b": "em"}
    assert set(setup.tokenizer.gen) == {"a", "b"}
    assert len(setup.tokenizer.spares) == 1


def test_what_can_run_meanwhile_begins_once_data_and_model_are_found_to_be_good(data: Path) -> None:
    """Ray starts then; it would make the user of a bad file wait for the message."""
    begun: list[str] = []
    prepare(experiment(data), lambda: begun.append("good"))
    assert begun == ["good"]
    with pytest.raises(ModelError, match="no/such-model"):
        prepare(experiment(data, model={"name": "no/such-model"}), lambda: begun.append("no model"))
    write(data / "b", "test", [{"context": 3}])
    with pytest.raises(DataError, match="test"):
        prepare(experiment(data), lambda: begun.append("bad data"))
    assert begun == ["good"]


def test_tokens_say_what_the_data_says(data: Path) -> None:
    setup = prepare(experiment(data))
    tok = setup.tokenizer
    for example, row in zip(small.examples("b", 12, 0).to_pylist(), setup.training["b"].to_pylist(), strict=True):
        answer = tok.encode(example["answer"])
        prompt = [*tok.encode(example["context"]), *tok.encode(example["question"]), tok.ans]
        assert (row["ids"], row["prompt_length"]) == ([*prompt, *answer], len(prompt))
        assert (row["gen"], row["task"], row["origin"]) == (tok.gen["b"], "b", "real")


def test_replay_is_as_long_as_the_longest_sequence_so_far_unless_it_is_said(data: Path) -> None:
    rows = small.examples("b", 4).to_pylist()
    rows[0]["question"] = "how does b begin ? " * 7
    write(data / "b", "train", rows)
    third = {"name": "c", "path": str(data / "a"), "metric": "em"}
    setup = prepare(experiment(data, stream=[*experiment(data).stream, third]))
    longest = [max(map(len, setup.training[task]["ids"].to_pylist())) for task in "abc"]
    assert longest[1] > longest[0]
    assert [setup.replay_length(stage) for stage in (1, 2)] == [longest[0] + 2, longest[1] + 2], "task token and EOS"
    assert prepare(experiment(data, replay={"max_length": 9})).replay_length(1) == 9
    assert prepare(experiment(data, replay={"max_length": 900})).replay_length(1) == 64, "never beyond the positions"


def test_names_of_special_tokens_in_the_data_are_text(data: Path) -> None:
    """In training and test examples; there is one ANS an example, and EOS nowhere."""
    rows = [
        {"context": f"say {name}", "question": "what __b__ ?", "answer": f"{name} __ans__", "sample_id": f"s{number}"}
        for number, name in enumerate(["<|endoftext|>", "__ans__", "__a__", "__pad__", "__spare_0__"])
    ]
    for split in ("train", "test"):
        write(data / "b", split, rows)
    setup = prepare(experiment(data))
    tok = setup.tokenizer
    special = {tok.eos, tok.ans, tok.pad, tok.unk, *tok.task_tokens}
    for ids in [*setup.training["b"]["ids"].to_pylist(), *setup.tests["b"].prompts["ids"].to_pylist()]:
        assert [i for i in ids if i in special] == [tok.ans]
    assert [item.references for item in setup.tests["b"].items] == [(row["answer"],) for row in rows]


def test_a_checkpoint_s_earlier_tasks_are_not_replayed_and_that_is_said(data: Path, tmp_path: Path) -> None:
    first = prepare(experiment(data))
    assert first.warnings == ()
    folder = tmp_path / "checkpoint"
    build_model(first.experiment.model, first.tokenizer, 0).save_pretrained(folder)
    first.tokenizer.save(folder)
    write(data / "c", "train", small.examples("c", 4).to_pylist())
    write(data / "c", "test", small.examples("c", 2).to_pylist())
    model, stream = {"name": str(folder)}, [{"name": name, "path": str(data / name), "metric": "em"} for name in "bc"]
    later = prepare(experiment(data, model=model, stream=stream))
    assert later.tokenizer.gen == {**first.tokenizer.gen, "c": first.tokenizer.spares[0]}
    assert later.tokenizer.size == first.tokenizer.size
    (warning,) = later.warnings
    assert f"{folder} is a checkpoint that has learned a. This run replays only tasks of its own stream" in warning
    assert "forget it" in warning
    assert later.of_teachers().warnings == ()


def test_a_tokeniser_that_loses_text_is_refused_with_what_it_loses(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    blind = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "word1": 2}, unk_token="<unk>"))
    blind.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=blind, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    with pytest.raises(
        ModelError, match=r"(?s)model\.name: the tokeniser .* of task a: of \d+ characters, .*remain.*tokenizer_class"
    ):
        prepare(experiment(data, model={"name": str(folder)}))


def test_the_number_of_peers_is_the_method_s_unless_it_is_said(data: Path) -> None:
    assert prepare(experiment(data)).topology.size == 2
    assert prepare(experiment(data, method="lamol")).topology.size == 1


def test_equal_data_gives_an_equal_fingerprint(data: Path) -> None:
    first = prepare(experiment(data))
    assert prepare(experiment(data, seed=7)).fingerprints == first.fingerprints, "the run seed draws no data"
    assert [len(digest) for digest in first.fingerprints.values()] == [32, 32]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_changed_word_changes_the_fingerprint(data: Path, split: str) -> None:
    before = prepare(experiment(data)).fingerprints
    path = data / "b" / f"{split}.jsonl"
    path.write_text(path.read_text().replace("how does b begin", "where does b begin", 1))
    assert prepare(experiment(data)).fingerprints != before


def test_the_order_of_the_stream_changes_the_fingerprints(data: Path) -> None:
    config = experiment(data)
    swapped = config.model_copy(update={"stream": config.stream[::-1]})
    assert prepare(swapped).fingerprints != prepare(config).fingerprints


def test_a_tokeniser_from_scratch_is_learned_from_the_training_texts(data: Path) -> None:
    config = experiment(data, model={"from_scratch": FROM_SCRATCH | {"vocabulary": 400}})
    setup = prepare(config)
    assert len(setup.tokenizer.encode("word1 word2 word3")) < 9, "words that occur often have tokens of their own"
    assert len(setup.tokenizer.encode("zyx wvu tsr")) > 9
    assert build_model(config.model, setup.tokenizer, 0).config.vocab_size == setup.tokenizer.size


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A model folder as one would download it: 40 positions, a tokeniser without task tokens."""
    folder = tmp_path / "model"
    tok = small.tokenizer()
    config = small.experiment(model={"from_scratch": FROM_SCRATCH | {"positions": 40}})
    build_model(config.model, tok, 0).save_pretrained(folder)
    TaskTokenizer.trained(["word1 word2"], 320, [], 0).hf.save_pretrained(folder)
    return folder


def test_a_pretrained_model_brings_its_tokeniser_and_its_limit(data: Path, pretrained: Path) -> None:
    setup = prepare(experiment(data, model={"name": str(pretrained)}))
    assert setup.max_length == 40
    assert set(setup.tokenizer.gen) == {"a", "b"}
    assert all(len(ids) + 1 <= 40 for table in setup.training.values() for ids in table["ids"].to_pylist())
    assert prepare(experiment(data, model={"name": str(pretrained), "max_length": 39})).max_length == 39
    with pytest.raises(ModelError, match=r"max_length: 41 tokens were requested, but the model has 40"):
        prepare(experiment(data, model={"name": str(pretrained), "max_length": 41}))


def test_a_shorter_limit_cuts_contexts(data: Path) -> None:
    full, cut = (
        prepare(experiment(data, model={"from_scratch": FROM_SCRATCH, "max_length": limit})) for limit in (64, 30)
    )
    assert cut.max_length == 30

    def longest(setup: Setup) -> int:
        return max(len(ids) for table in setup.training.values() for ids in table["ids"].to_pylist())

    assert longest(full) > 30
    assert longest(cut) == 29, "and one for GEN"


def too_long(data: Path, count: int) -> None:
    rows = small.examples("b", 12).to_pylist()
    for row in rows[:count]:
        row["question"] = "word1 " * 80
    write(data / "b", "train", rows)


def test_examples_that_do_not_fit_are_refused_beyond_the_tolerated_share(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    too_long(data, 2)
    with pytest.raises(DataError, match=r"(?s)2 of 12 examples in task b, train do not fit.*\n  b-0: question of 160"):
        prepare(experiment(data))
    tolerant = prepare(experiment(data, data={"max_bad_fraction": 0.2}))
    assert tolerant.training["b"].num_rows == 10
    warnings = [record.getMessage() for record in caplog.records if record.name == "ray_l4.setup.setup"]
    assert len(warnings) == 1
    assert warnings[0].startswith("task b: 2 of 12 training examples left out: b-0: question of 160")


def test_questions_of_the_test_set_always_have_to_fit(data: Path) -> None:
    """A test set without its hardest questions would be another one."""
    rows = small.examples("b", 5).to_pylist()
    rows[3]["question"] = "word1 " * 80
    write(data / "b", "test", rows)
    with pytest.raises(DataError, match="1 of 5 examples in the test set of b do not fit"):
        prepare(experiment(data, data={"max_bad_fraction": 0.5}))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "l5"}, ConfigError, r"unknown method 'l5'\. Did you mean 'l4'\?"),
        ({"stream": ["mini.wok"]}, ConfigError, r"Unknown task 'mini\.wok'\. Did you mean 'mini\.woz'\?"),
        ({"model": {"name": "no/such-model"}}, ModelError, "no/such-model"),
    ],
)
def test_names_that_are_not_known(data: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare(experiment(data, **changes))


def test_own_data_needs_a_metric_and_its_files(data: Path) -> None:
    with pytest.raises(ConfigError, match="set its metric"):
        prepare(experiment(data, stream=[{"name": "a", "path": str(data / "a")}]))
    (data / "b" / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"Task 'b': no test data"):
        prepare(experiment(data))


def test_a_task_cannot_take_the_name_of_another_token(data: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be called 'ans'"):
        prepare(experiment(data, stream=[{"name": "ans", "path": str(data / "a"), "metric": "em"}]))


def test_the_tokeniser_depends_on_the_training_texts_alone(data: Path) -> None:
    """Not on the test set: it must not be seen before it is asked."""
    config = experiment(data)
    setup = prepare(config)
    write(data / "a", "test", small.examples("other", 5).to_pylist())
    assert prepare(config).tokenizer.hf.get_vocab() == setup.tokenizer.hf.get_vocab()
    tables = {name: small.examples(name, 12) for name in ("a", "b")}
    assert build_tokenizer(config, tables).hf.get_vocab() == setup.tokenizer.hf.get_vocab()
