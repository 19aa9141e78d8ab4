"""Loading of experiment files and cluster profiles: overrides, paths, and messages for mistakes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.loading import data_config, dump_yaml, load_cluster, load_experiment
from ray_l4.config.protocol import load_protocol
from ray_l4.config.strict_yaml import dump
from ray_l4.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
MINIMAL = "stream: [mini.woz, mini.sql]\nmodel:\n  from_scratch: {layers: 3}\n"


@pytest.fixture(autouse=True)
def _no_data_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_L4_DATA", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems(path: Path | None, overrides: Sequence[str] = (), load: Callable = load_experiment) -> list[str]:
    """Return the lines of the error message, with ``path`` replaced by FILE."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    text = str(caught.value)
    assert "pydantic" not in text
    assert "https://" not in text
    return text.replace(str(path), "FILE").splitlines()


# --- files of the repository ---

EXPERIMENTS = sorted((REPOSITORY / "launch/experiments").glob("*.yaml"))


def top_keys(path: Path) -> set[str]:
    """Return the top-level keys of a file. One with ``sweep`` is a protocol; one without ``stream`` is an overlay."""
    return {line.split(":")[0] for line in path.read_text(encoding="utf-8").splitlines() if line[:1].isalpha()}


@pytest.mark.parametrize(
    "path",
    [path for path in EXPERIMENTS if "sweep" not in top_keys(path) and "stream" in top_keys(path)],
    ids=lambda path: path.stem,
)
def test_every_experiment_loads(path: Path) -> None:
    assert load_experiment(path).name == path.stem


@pytest.mark.parametrize(
    "path", [path for path in EXPERIMENTS if {"sweep", "name"} <= top_keys(path)], ids=lambda path: path.stem
)
def test_every_protocol_loads_but_not_as_an_experiment(path: Path) -> None:
    assert path.stem.startswith(load_protocol(path).base.name)
    (line,) = problems(path)
    assert line.endswith(f"Start them with: ray-l4 sweep {path}".replace(str(path), "FILE"))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "cluster_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_loads(path: Path) -> None:
    assert load_cluster(path).name == path.stem


def test_the_laptop_profile_lists_all_defaults() -> None:
    path = REPOSITORY / "cluster_configs/laptop.yaml"
    assert load_cluster(path) == load_cluster() == ClusterConfig()
    keys = {line.split(":")[0].strip() for line in path.read_text().splitlines() if ":" in line.split("#")[0]}
    assert keys >= {line.split(":")[0].strip() for line in dump_yaml(ClusterConfig()).splitlines()}


def test_fractions_of_a_gpu_add_up() -> None:
    one, two = (load_cluster(REPOSITORY / f"cluster_configs/{name}.yaml") for name in ("one_gpu", "two_gpus"))
    assert 2 * one.students.gpus + one.evaluators.count * one.evaluators.gpus == one.ray.num_gpus == 1
    assert 2 * two.students.gpus + two.evaluators.count * two.evaluators.gpus == two.ray.num_gpus == 2
    assert two.students.gpus > 0.5


# --- unreadable files ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: caf\xe9\n", "FILE: byte 9 (0xe9) is not UTF-8; save the file as UTF-8"),
        (b"", "FILE: the file is empty"),
        (b"# nothing\n", "FILE: the file is empty"),
        (b"- a\n- b\n", "FILE: expected keys and values (key: value), found list"),
        (b"seed: 1\nseed: 2\n", "FILE:2:1: not valid YAML: key 'seed' appears twice (first in line 1)"),
        (b"seed: [1\n", "FILE:2:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_unreadable_content(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert problems(path) == [message]
    assert problems(path, load=load_cluster) == [message]


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yaml") == ["FILE: no such file"]
    assert problems(tmp_path) == ["FILE: is a folder; expected a YAML file."]


# --- invalid values in a file ---


def test_all_problems_are_reported_at_once_with_line_and_remedy(write: Callable[[str], Path]) -> None:
    path = write(
        """\
name: 5
sed: 3
seed: no
stream:
  - a
  - name: b
    train: 0
    columns: {contxt: x}
  - 7
model:
  from_scratch:
    layers: 2.5
    heads: true
training:
optim: {lr: -1e-3}
data: {max_bad_fraction: 2, raw: []}
evaluation: {when: never}
peers: {zzz: 0}
"""
    )
    task = "name, train, test, path, dataset, splits, columns, metric, question, settings"
    training = "epochs, batch_size, batch_budget, lm_weight, means, answer_token_weight, max_grad_norm"
    training += ", non_finite, most_skipped"
    assert sorted(problems(path), key=lambda line: int(line.split(":")[1])) == [
        "FILE:1: name: expected text, found 5; put it in quotes to make it text",
        "FILE:2: sed: unknown key. Did you mean 'seed'?",
        'FILE:3: seed: expected a whole number, found "no"',
        "FILE:7: stream.1.train: expected a whole number of at least 1 or 'paper' or 'all', found 0",
        "FILE:8: stream.1.columns.contxt: unknown key. Did you mean 'context'?",
        f"FILE:9: stream.2: expected a group of keys ({task}), found 7",
        "FILE:12: model.from_scratch.layers: expected a whole number of at least 1 and at most 512, found 2.5",
        "FILE:13: model.from_scratch.heads: expected a whole number of at least 1 and at most 4_096, found true",
        f"FILE:14: training: expected a group of keys ({training}), found nothing",
        "FILE:15: optim.lr: expected a number above 0, found -0.001",
        "FILE:16: data.raw: expected a path or null, found an empty list",
        "FILE:16: data.max_bad_fraction: expected a number of at least 0 and at most 1, found 2",
        "FILE:17: evaluation.when: expected 'epoch' or 'stage', found \"never\"",
        "FILE:18: peers.zzz: unknown key. Known: count, each, init, on_peer_loss, subset, topology.",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "stream: [a]\n",
            "FILE: model: missing; expected a group of keys "
            "(name, from_scratch, trust_custom_code, precision, dtype, gradient_checkpointing, compile, "
            "max_length, chat_template, lora, task_tokens, spare_task_tokens)",
        ),
        ("model: {name: x}\n", "FILE: stream: missing; expected a non-empty list"),
        (
            "stream: [a]\nmodel: {name: x}\npeers: {count: 100000000}\n",
            "FILE:3: peers.count: expected a whole number of at least 1 and at most 1_024 or null, found 100000000",
        ),
        ("stream: []\nmodel: {name: x}\n", "FILE:1: stream: expected a non-empty list, found an empty list"),
        ("stream: a\nmodel: {name: x}\n", 'FILE:1: stream: expected a non-empty list, found "a"'),
        ("stream:\n- train: 3\nmodel: {name: x}\n", "FILE:2: stream.0.name: missing; expected text"),
        ("stream: [a]\nmodel: {}\n", "FILE:2: model: give exactly one of 'name' and 'from_scratch'"),
        (
            "stream: [a]\nmodel: {name: x, compile: true, gradient_checkpointing: true}\n",
            "FILE:2: model: 'compile' has no effect on layers whose activations are computed again: remove it, or "
            "'gradient_checkpointing'",
        ),
        (
            "stream: [a, 'a (2)', a]\nmodel: {name: x}\n",
            "FILE: task 'a (2)' has the name of the stage of a task that comes back; give it another name",
        ),
        (
            "stream: [a]\nmodel: {from_scratch: {heads: 3}}\n",
            "FILE:2: model.from_scratch: width 256 is not a multiple of heads 3",
        ),
        (
            f"stream: [a]\nmodel: {{name: x, precision: {'y' * 80}}}\n",
            f"FILE:2: model.precision: expected 'float32' or 'bfloat16', found \"{'y' * 56}...",
        ),
        ("stream: [a]\nmodel: {name: x}\ndata: 3\n", "FILE:3: data: expected a group of keys (raw, "),
    ],
)
def test_one_problem(write: Callable[[str], Path], text: str, message: str) -> None:
    (line,) = problems(write(text))
    assert line.startswith(message)


def test_problems_of_a_profile(write: Callable[[str], Path]) -> None:
    path = write("students: {gpu: 1}\nexchange: {precision: int8, steps_ahead: 65}\nray: {object_store_memory: 1}\n")
    assert problems(path, load=load_cluster) == [
        "FILE:3: ray.object_store_memory: expected a whole number of at least 80_000_000 or null, found 1",
        "FILE:1: students.gpu: unknown key. Did you mean 'gpus'?",
        "FILE:2: exchange.precision: expected 'float32' or 'float16', found \"int8\"",
        "FILE:2: exchange.steps_ahead: expected a whole number of at least 1 and at most 64, found 65",
    ]


# --- overrides ---


def test_overrides_can_set_every_kind_of_value(write: Callable[[str], Path]) -> None:
    config = load_experiment(
        write(MINIMAL),
        [
            "training.epochs=2",  # a group that is missing from the file
            "training.lm_weight=1e-2",
            "model.from_scratch.layers=5",  # a member of a union
            "stream.0.train=100",  # a task given by its name only
            "stream.1=mini.rest",
            "name='12'",
            "peers={count: 3, init: own}",
            "replay.max_length=null",
            "stream.1.columns.id=row=1",  # a value that contains an equals sign
        ],
    )
    assert (config.training.epochs, config.training.lm_weight) == (2, 0.01)
    assert config.model.from_scratch is not None
    assert config.model.from_scratch.layers == 5
    assert [(task.name, task.train) for task in config.stream] == [("mini.woz", 100), ("mini.rest", "paper")]
    assert (config.name, config.peers.count, config.peers.init) == ("12", 3, "own")
    assert config.stream[1].columns.id == "row=1"


TEXTS = ["a #b", "#b", "a: b", "- a", "@a", "*a", "&a", "!a", "%a", "a, b", "no", "on", "1:30", "007", "0x1f", "> a"]
TEXTS += ['"a" #b', "'a' or 'b'?", "[a] or {b}", "{a} b"]  # quotes and brackets that only begin a text
TEXTS += ["| a", "? a", "a]", "a'b", "a: [b", "5 %", "null value", "~x", "é #ü", "`a`"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["name", "stream.0.question", "stream.1.columns.answer", "cluster.ray.address"])
def test_plain_text_is_kept_to_the_letter(write: Callable[[str], Path], key: str, text: str) -> None:
    if key.startswith("cluster."):
        assert load_cluster(None, [f"{key.removeprefix('cluster.')}={text}"]).ray.address == text
        return
    found: Any = load_experiment(write(MINIMAL), [f"{key}= {text} "])
    for step in key.split("."):
        found = found[int(step)] if step.isdecimal() else getattr(found, step)
    assert found == text


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ('name="a #b"', "a #b"),
        ("name='a: b'", "a: b"),
        ("stream.0=mini.rest", "run"),
        ("stream.0={name: mini.rest} # a comment", "run"),
        ("training.epochs=3 # a comment", "run"),
    ],
)
def test_quotes_and_other_settings_are_yaml(write: Callable[[str], Path], override: str, found: str) -> None:
    assert load_experiment(write(MINIMAL), [override]).name == found


def test_a_task_given_by_its_name_is_kept_to_the_letter(write: Callable[[str], Path]) -> None:
    config = load_experiment(write(MINIMAL), ["stream.0=my #1", "training={epochs: 3}"])
    assert (config.stream[0].name, config.training.epochs) == ("my #1", 3)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("lr=1e-3", "--set: lr: unknown key. Did you mean 'optim.lr' or 'peers.each.0.lr'?"),
        ("epochs=1", "--set: epochs: unknown key. Did you mean 'training.epochs' or 'teachers.epochs'?"),
        ("training.lr=1", "--set: training.lr: unknown key. Did you mean 'optim.lr' or 'peers.each.0.lr'?"),
        ("epoch=1", "--set: epoch: unknown key. Did you mean 'training.epochs' or 'teachers.epochs'?"),
        ("learning_rate=1", "--set: learning_rate: unknown key. Did you mean 'optim.lr' or 'peers.each.0.lr'?"),
        ("optim.learning_rate=1", "--set: optim.learning_rate: unknown key. Did you mean 'lr'?"),
        ("batch-size=1", "--set: batch-size: unknown key. Did you mean 'training.batch_size'?"),
        ("Seed=1", "--set: Seed: unknown key. Did you mean 'seed'?"),
        ("metric=em", "--set: metric: unknown key. Did you mean 'stream.0.metric'?"),
        ("transport=x", "--set: transport: unknown key. Did you mean 'cluster.exchange.transport'?"),
        ("students.gpus=1", "--set: students: unknown key. Did you mean 'teachers.students' or 'cluster.students'?"),
        ("sed=1", "--set: sed: unknown key. Did you mean 'seed'?"),
    ],
)
def test_a_key_of_another_group_is_suggested(write: Callable[[str], Path], override: str, hint: str) -> None:
    assert problems(write(MINIMAL), [override]) == [hint]


def test_a_key_of_another_group_is_suggested_in_a_file_and_for_a_profile(write: Callable[[str], Path]) -> None:
    hint = "unknown key. Did you mean 'optim.lr' or 'peers.each.0.lr'?"
    assert problems(write(MINIMAL + "lr: 1e-3\n")) == [f"FILE:4: lr: {hint}"]
    assert problems(write("transport: x\n"), load=load_cluster) == [
        "FILE:1: transport: unknown key. Did you mean 'exchange.transport'?"
    ]
    assert problems(None, ["threads=1"], load=load_cluster) == [
        "--set: threads: unknown key. Did you mean 'cluster.students.threads' or 'cluster.evaluators.threads'?"
    ]


def test_overrides_can_replace_the_stream_and_then_change_it(write: Callable[[str], Path]) -> None:
    config = load_experiment(write(MINIMAL), ["stream=[x, y]", "stream.1.test=7"])
    assert [(task.name, task.test) for task in config.stream] == [("x", "paper"), ("y", 7)]


def test_overrides_can_replace_the_model(write: Callable[[str], Path]) -> None:
    config = load_experiment(write(MINIMAL), ["model.from_scratch=null", "model.name=gpt2"])
    assert (config.model.name, config.model.from_scratch) == ("gpt2", None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainning.epochs=3"], "--set: trainning: unknown key. Did you mean 'training'?"),
        (["model.from_scrach.layers=2"], "--set: model.from_scrach: unknown key. Did you mean 'from_scratch'?"),
        (["model.from_scratch.layer=2"], "--set: model.from_scratch.layer: unknown key. Did you mean 'layers'?"),
        (["training.epochs=0"], "--set: training.epochs: expected a whole number of at least 1, found 0"),
        (["seed.x=1"], "--set: seed: expected a whole number, found a group of keys"),
        (["stream={a: 1}"], "--set: stream: expected a non-empty list, found a group of keys"),
        (["stream.0={train: 5}"], "--set: stream.0.name: missing; expected text"),
        (["name=7"], "--set: name: expected text, found 7; put it in quotes to make it text"),
        (["training.0=1"], "--set: training.0: unknown key. Known: answer_token_weight, batch_budget, "),
        (
            ["model.name=x"],
            "FILE:2 with --set model.name: model: give exactly one of 'name' and 'from_scratch'",
        ),
        (
            ["stream.1={name: mini.woz, metric: em}"],
            "FILE with --set stream.1: task 'mini.woz' comes back with another metric (em), but its scores have to be",
        ),
        (["stream.2.train=1"], "--set stream.2.train=1: stream has 2 items, numbered from 0; there is no item '2'"),
        (["stream.-1.train=1"], "--set stream.-1.train=1: stream has 2 items, numbered from 0; there is no item '-1'"),
        (["stream.x.train=1"], "--set stream.x.train=1: stream has 2 items, numbered from 0; there is no item 'x'"),
        (["stream.0.name.x=1"], "--set stream.0.name.x=1: stream.0.name is 'mini.woz', which has no keys"),
        (["seed"], "--set seed: expected key=value, with dots between keys (training.epochs=3)"),
        (["=3"], "--set =3: expected key=value, with dots between keys (training.epochs=3)"),
        (["a..b=3"], "--set a..b=3: expected key=value, with dots between keys (training.epochs=3)"),
        (["seed="], "--set seed=: the value is missing (use null for no value, '\"\"' for empty text)"),
        (["name=[a"], "--set name:1:3: not valid YAML: expected ',' or ']'"),
        (["seed=1", "seed=2"], "--set seed=2: would undo the earlier --set seed; give only one of them"),
        (
            ["model.from_scratch.layers=2", "model={name: x}"],
            "--set model={name: x}: would undo the earlier --set model.from_scratch.layers; give only one of them",
        ),
    ],
)
def test_an_invalid_override(write: Callable[[str], Path], overrides: list[str], message: str) -> None:
    (line,) = problems(write(MINIMAL), overrides)
    assert line.startswith(message)


def test_all_invalid_overrides_are_reported_at_once(write: Callable[[str], Path]) -> None:
    lines = problems(write(MINIMAL), ["seed", "stream.9.train=1", "name=x"])
    assert [line.split(":")[0] for line in lines] == ["--set seed", "--set stream.9.train=1"]


def test_overrides_of_a_profile() -> None:
    assert load_cluster(None, ["students.gpus=0.5", "ray.address=host:6379"]) == ClusterConfig.model_validate(
        {"students": {"gpus": 0.5}, "ray": {"address": "host:6379"}}
    )
    lines = problems(None, ["student.gpus=1"], load=load_cluster)
    assert lines == ["--set: student: unknown key. Did you mean 'students'?"]


LEAVES = {
    "training.epochs": st.integers(1, 10**6),
    "optim.lr": st.floats(min_value=1e-12, max_value=10, exclude_min=True),
    "name": st.text(),
    "stream.1.question": st.none() | st.text(),
    "stream.0.train": st.integers(1, 10**6) | st.sampled_from(["paper", "all"]),
    "evaluation.limit": st.none() | st.integers(1, 10**6),
    "model.from_scratch.dropout": st.floats(0, 1),
    "stream.0.columns.answer": st.text(),
}


@given(st.fixed_dictionaries({}, optional=LEAVES))
@example({"name": f"{'0' * 118} 0"})  # longer than a line of a file
def test_every_override_takes_effect_and_survives_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("round-trip")  # a new file does not wait for the disk, as one written again does
    (folder / "base.yaml").write_text(MINIMAL, encoding="utf-8")
    overrides = [f"{key}={_yaml(value)}" for key, value in values.items()]
    config = load_experiment(folder / "base.yaml", overrides)
    for key, value in values.items():
        found: object = config
        for step in key.split("."):
            found = found[int(step)] if isinstance(found, list) else getattr(found, step)
        assert found == value
    (folder / "resolved.yaml").write_text(dump_yaml(config), encoding="utf-8", newline="\n")
    assert load_experiment(folder / "resolved.yaml") == config
    assert dump_yaml(load_experiment(folder / "resolved.yaml")) == dump_yaml(config)


def _yaml(value: object) -> str:
    """Return a value as a user might type it, on one line."""
    return dump({"x": value}, width=math.inf).removeprefix("x: ").rstrip("\n")


# --- paths ---


def test_paths_of_a_file_are_relative_to_its_folder(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        "data: {raw: raw}\nmodel: {name: tiny}\nstream:\n- {name: a, path: mine}\n- {name: b, path: /abs}\n- c\n"
    )
    (path.parent / "tiny").mkdir()
    monkeypatch.chdir(path.parent.parent)
    config = load_experiment(Path(path.parent.name) / path.name)
    assert config.data.raw == path.parent / "raw"
    assert [task.path for task in config.stream] == [path.parent / "mine", Path("/abs"), None]
    assert config.model.name == str(path.parent / "tiny")


def test_a_model_that_is_not_a_folder_is_a_hub_name(write: Callable[[str], Path]) -> None:
    assert load_experiment(write("stream: [a]\nmodel: {name: org/model}\n")).model.name == "org/model"


def test_paths_of_an_override_are_relative_to_the_current_folder(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("data: {raw: raw}\nstream: [a, {name: b, path: kept}]\nmodel: {name: m}\n")
    here = path.parent / "here"
    (here / "tiny").mkdir(parents=True)
    (path.parent / "tiny").mkdir()
    monkeypatch.chdir(here)
    config = load_experiment(path, ["data.raw=r", "stream.0={name: a, path: p}", "model.name=tiny"])
    assert (config.data.raw, config.stream[0].path) == (here / "r", here / "p")
    assert config.stream[1].path == path.parent / "kept"
    assert config.model.name == str(here / "tiny")


TILDES = """
stream: [{name: a, path: ~/a}]
model: {name: ~/m}
data: {raw: ~/raw, converted: "~", }
teachers: {run: ~/t}
peers: {topology: ~/edges, each: [{model: {name: ~/peer}}]}
"""


def test_a_tilde_is_expanded_in_every_path(write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config, home = load_experiment(write(TILDES)), Path("/home/someone")
    assert (config.data.raw, config.data.converted) == (home / "raw", home)
    assert (config.stream[0].path, config.teachers.run) == (home / "a", home / "t")
    assert config.peers.topology == home / "edges"
    assert config.model.name == "/home/someone/m"
    assert config.peers.each[0].model is not None and config.peers.each[0].model.name == "/home/someone/peer"


@pytest.mark.parametrize(
    ("key", "value"), [("data.raw", "~/x"), ("stream.0.path", "~"), ("model.name", "~/x"), ("teachers.run", "~/x/y")]
)
def test_a_tilde_is_expanded_in_an_override(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_experiment(write("stream: [{name: a}]\nmodel: {name: m}\n"), [f"{key}='{value}'"])
    found: Any = config
    for part in key.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)
    assert str(found) == value.replace("~", "/home/someone")


def test_a_home_that_does_not_exist_is_left(write: Callable[[str], Path]) -> None:
    path = write("stream: [{name: a, path: ~no-such-user/x}]\nmodel: {name: m}\n")
    assert load_experiment(path).stream[0].path == path.parent / "~no-such-user/x"


def test_the_data_variable_applies_if_the_file_sets_no_folder(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(MINIMAL)
    monkeypatch.setenv("RAY_L4_DATA", str(path.parent))
    assert load_experiment(path).data.raw is None  # raw/ does not exist yet
    (path.parent / "raw").mkdir()
    assert load_experiment(path).data.raw == path.parent / "raw"
    assert load_experiment(path, ["data.seed=1"]).data.raw == path.parent / "raw"
    assert load_experiment(path, ["data.raw=/x"]).data.raw == Path("/x")
    assert load_experiment(path, ["data.raw=null"]).data.raw is None
    monkeypatch.setenv("HOME", str(path.parent))
    monkeypatch.setenv("RAY_L4_DATA", "~")
    assert load_experiment(path).data.raw == path.parent / "raw"
    monkeypatch.setenv("RAY_L4_DATA", "")
    monkeypatch.chdir(path.parent)
    assert load_experiment(path).data.raw is None


def test_data_settings_without_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_config().raw is None
    (tmp_path / "raw").mkdir()
    monkeypatch.setenv("RAY_L4_DATA", str(tmp_path))
    assert data_config().raw == tmp_path / "raw"
    assert data_config(Path("/x")).raw == Path("/x")


def test_a_resolved_file_loads_to_the_same_settings_elsewhere(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_experiment(write("data: {raw: raw}\nstream: [{name: b, path: kept}]\nmodel: {name: m}\n"))
    bare = load_experiment(write(MINIMAL))
    other = tmp_path / "run"
    (other / "raw").mkdir(parents=True)
    monkeypatch.setenv("RAY_L4_DATA", str(other))
    for original in (config, bare):
        (other / "config.yaml").write_text(dump_yaml(original), encoding="utf-8")
        assert load_experiment(other / "config.yaml") == original


@given(st.builds(ClusterConfig, name=st.text()))
def test_profiles_survive_a_round_trip(tmp_path_factory: pytest.TempPathFactory, config: ClusterConfig) -> None:
    path = tmp_path_factory.getbasetemp() / "profile.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8", newline="\n")
    assert load_cluster(path) == config


def test_a_custom_resource_cannot_have_a_name_reserved_by_ray(write: Callable[[str], Path]) -> None:
    path = write("students: {resources: {GPU: 1}}\n")
    assert problems(path, load=load_cluster) == [
        "FILE:1: students: resources: GPU is a name reserved by Ray; use cpus or gpus, or another name"
    ]


def test_a_general_text_is_relative_to_the_file_or_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in" / "experiment.yaml"
    path.parent.mkdir()
    path.write_text("stream: [mini.woz]\nmodel: {from_scratch: {}}\nevaluation: {general: prose.txt}\n")
    monkeypatch.chdir(tmp_path)
    assert load_experiment(path).evaluation.general == path.parent / "prose.txt"
    assert load_experiment(path, ["evaluation.general=prose.txt"]).evaluation.general == tmp_path / "prose.txt"
    assert load_experiment(path, ["evaluation.general=null"]).evaluation.general is None
    with pytest.raises(ConfigError, match=r"evaluation.general_tokens.*100"):
        load_experiment(path, ["evaluation.general_tokens=99"])


def test_validation_is_a_share_a_split_or_a_path(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("stream: [mini.woz]\nmodel: {from_scratch: {}}\n")
    found = {}
    for text in ("0.25", "dev", "./dev", "held", "1.5", "0"):
        path.write_text(f"stream: [mini.woz]\nmodel: {{from_scratch: {{}}}}\nevaluation: {{validation: {text}}}\n")
        try:
            found[text] = load_experiment(path).evaluation.validation
        except ConfigError as error:
            found[text] = str(error).rpartition("expected ")[2]
    wrong = "a number above 0 and below 1 or 'dev' or a path or null, found "
    assert found == {
        "0.25": 0.25,
        "dev": "dev",
        "./dev": tmp_path / "dev",
        "held": tmp_path / "held",
        "1.5": f"{wrong}1.5",
        "0": f"{wrong}0",
    }


@pytest.mark.parametrize(("keep", "newest"), [("all", None), ("last", 1), ("7", 7)])
def test_how_many_checkpoints_are_kept(keep: str, newest: int | None) -> None:
    path = REPOSITORY / "launch/experiments/quickstart.yaml"
    assert load_experiment(path).checkpoint.newest is None
    assert load_experiment(path, [f"checkpoint.keep={keep}"]).checkpoint.newest == newest


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.patience=2", "patience counts epochs without a lower validation loss; set validation too"),
        ("checkpoint.keep=0", "expected a whole number of at least 1 or 'last' or 'all', found 0"),
    ],
)
def test_validation_and_checkpoints_that_make_no_sense(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment(REPOSITORY / "launch/experiments/quickstart.yaml", [override])
