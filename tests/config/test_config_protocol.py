"""Protocols: priority of the sources of a value, and the origins named in messages."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_l4.config.loading import load_experiment
from ray_l4.config.protocol import Change, Origin, load_protocol
from ray_l4.errors import ConfigError

BASE = """\
name: base
stream: [mini.woz, {name: mini.rest, train: 30}]
model: {from_scratch: {layers: 1}}
training: {epochs: 9}
"""


def change(key: str, value: object, origin: str = "HERE") -> Change:
    """Return a change with the given origin, relative to the current folder."""
    return Change(key, value, Origin(origin, Path.cwd()))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a protocol: ``BASE`` and a ``sweep`` of the given lines."""

    def file(sweep: str | None = None, name: str = "protocol.yaml", base: str = BASE) -> Path:
        path = tmp_path / name
        path.write_text(base + ("" if sweep is None else f"sweep:\n{textwrap.indent(sweep, '  ')}"), encoding="utf-8")
        return path

    return file


def problem(path: Path, *arguments: object) -> str:
    """Return the error message of an invalid protocol, without the path of its folder."""
    with pytest.raises(ConfigError) as caught:
        load_protocol(path, *arguments)  # type: ignore[arg-type]
    return str(caught.value).replace(f"{path.parent}/", "")


def test_a_protocol_with_all_keys(write: Callable[..., Path]) -> None:
    protocol = load_protocol(
        write(
            "title: All of it\n"
            "table: l4-table2\n"
            "variants:\n"
            "  lamol: {method: lamol}\n"
            "  long: {method: multi-qa, training.epochs: 27}\n"
            "orders: [[mini.rest, mini.woz]]\n"
            "grid: {distillation.weight: [0, 0.2]}\n"
            "seeds: [3, 5]\n"
        )
    )
    sweep = protocol.sweep
    assert (protocol.title, sweep.table) == ("All of it", "l4-table2")
    assert sweep.variants == {"lamol": {"method": "lamol"}, "long": {"method": "multi-qa", "training.epochs": 27}}
    assert sweep.orders == [["mini.rest", "mini.woz"]]
    assert sweep.grid == {"distillation.weight": [0, 0.2]}
    assert sweep.seeds == [3, 5]
    assert protocol.base.training.epochs == 9


def test_a_list_of_methods_is_short_for_variants(write: Callable[..., Path]) -> None:
    sweep = load_protocol(write("variants: [lamol, l4]\n")).sweep
    assert sweep.variants == {"lamol": {"method": "lamol"}, "l4": {"method": "l4"}}


def test_an_experiment_file_is_a_protocol_of_one_run(write: Callable[..., Path]) -> None:
    path = write()
    protocol = load_protocol(path)
    assert protocol.base == load_experiment(path)
    assert protocol.title == "base"
    assert (protocol.sweep.variants, protocol.sweep.orders, protocol.sweep.grid, protocol.sweep.seeds) == (
        {},
        None,
        {},
        1,
    )


def test_a_protocol_is_not_an_experiment(write: Callable[..., Path]) -> None:
    path = write("seeds: 2\n")
    with pytest.raises(ConfigError, match=r"protocol.yaml:5: sweep: this file is a protocol.*ray-l4 sweep .*protocol"):
        load_experiment(path)


# --- priority of sources ---


def test_later_layers_win(write: Callable[..., Path], tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("training: {epochs: 5, batch_size: 2, lm_weight: 0.5}\nsweep: {seeds: 4}\n", encoding="utf-8")
    protocol = load_protocol(
        write("seeds: 2\ntitle: T\n"),
        ["training.batch_size=3"],
        [over],
        lambda experiment: {"training.epochs": experiment.training.epochs * 100, "training.batch_size": 77},
    )
    training = protocol.base.training
    assert training.epochs == 500, "the overlay file, then rescaled"
    assert training.batch_size == 3, "--set has priority over both"
    assert training.lm_weight == 0.5
    assert (protocol.sweep.seeds, protocol.sweep.title) == (4, "T"), "the sweep is merged too"
    changed = protocol.experiment([change("training.batch_size", 8, "a"), change("training.batch_size", 9, "b")])
    assert changed.training.batch_size == 9
    assert protocol.base.training.batch_size == 3, "the protocol is not modified"
    assert protocol.experiment([]) == protocol.base


def test_a_field_set_by_a_change_counts_as_set(write: Callable[..., Path]) -> None:
    """``methods.resolved`` applies a method's defaults only to fields that the experiment does not set."""
    protocol = load_protocol(write("seeds: 2\n"))
    assert "weight" not in protocol.base.distillation.model_fields_set
    assert "weight" in protocol.experiment([change("distillation.weight", 0.2)]).distillation.model_fields_set


def test_an_overlay_can_replace_the_model(write: Callable[..., Path], tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("model: {from_scratch: null, name: gpt2}\n", encoding="utf-8")
    base = load_protocol(write(), (), [over]).base
    assert (base.model.name, base.model.from_scratch) == ("gpt2", None)


def test_paths_of_an_overlay_are_relative_to_its_folder(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "over.yaml").write_text("data: {raw: raw}\n", encoding="utf-8")
    assert load_protocol(write(), (), [folder / "over.yaml"]).base.data.raw == folder / "raw"


def test_a_change_can_set_a_key_of_a_task_given_by_its_name_only(write: Callable[..., Path]) -> None:
    changed = load_protocol(write()).experiment([change("stream.0.train", 12)])
    assert [task.train for task in changed.stream] == [12, 30]


def test_the_path_of_a_change_is_relative_to_the_folder_of_its_origin(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    """Also if an option created the group around it, or set the group as a whole."""
    origins = {"FILE": tmp_path, "OPTION": tmp_path / "elsewhere"}
    over = tmp_path / "over.yaml"
    over.write_text("teachers: {run: theirs}\n", encoding="utf-8")
    base = load_protocol(write(), ["teachers={run: here}"], [over]).base
    assert base.teachers.run == Path.cwd() / "here", "--set replaces the whole group of the overlay"
    for overrides in ([], ["teachers.epochs=3"], ["teachers={epochs: 3, run: theirs}"]):
        protocol = load_protocol(write("seeds: 2\n"), overrides)
        for name, folder in origins.items():
            changed = protocol.experiment([Change("teachers.run", "mine", Origin(name, folder))])
            assert changed.teachers.run == folder / "mine"


def test_origins_of_the_sweep(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "over").mkdir()
    over = tmp_path / "over" / "over.yaml"
    over.write_text("sweep:\n  variants:\n    a:\n      optim.lr: 1.0\n", encoding="utf-8")
    path = write("variants:\n  a:\n    method: l4\n")
    protocol = load_protocol(path, (), [over])
    assert protocol.sweep.variants == {"a": {"method": "l4", "optim.lr": 1.0}}
    assert protocol.origin("variants", "a", "optim.lr") == Origin(f"{over}:4", over.parent)
    assert protocol.origin("variants", "a", "method") == Origin(f"{path}:8", tmp_path)


# --- invalid protocols ---


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("sedes: 3\n", "protocol.yaml:6: sweep.sedes: unknown key. Did you mean 'seeds'?"),
        ("seeds: 0\n", "protocol.yaml:6: sweep.seeds: expected a whole number of at least 1"),
        ("seeds: [1, 2, 1]\n", "protocol.yaml:5: sweep: seeds: 1 appears twice"),
        ("orders: [[a, b], [a, b]]\n", "protocol.yaml:5: sweep: orders: ['a', 'b'] appears twice"),
        ("orders: some\n", "protocol.yaml:6: sweep.orders: expected 'all' or a list"),
        ("variants: [l4, l4]\n", "protocol.yaml:6: sweep.variants: 'l4' appears twice"),
        (
            "variants: {a: {method: l4}, a: {method: lamol}}\n",
            "protocol.yaml:6:31: not valid YAML: key 'a' appears twice",
        ),
        ("variants: {a: l4}\n", "protocol.yaml:6: sweep.variants: expected a list of methods, or labels"),
        (
            "variants: {a: {seed: 4}}\n",
            "protocol.yaml:6: sweep.variants: seed: is set by the sweep itself; use sweep.seeds",
        ),
        (
            "grid: {training.epochs: 3}\n",
            "protocol.yaml:6: sweep.grid: expected keys of the experiment, each with a list",
        ),
        ("grid: {training.epochs: [3, 3]}\n", "protocol.yaml:6: sweep.grid: training.epochs: 3 appears twice"),
        (
            "grid: {variant: [a]}\n",
            "protocol.yaml:6: sweep.grid: variant: is set by the sweep itself; use sweep.variants",
        ),
        (
            "[1]\n",
            "protocol.yaml:5: sweep: expected a group of keys (title, table, variants, orders, grid, seeds, against)",
        ),
    ],
)
def test_invalid_sweep_settings(write: Callable[..., Path], sweep: str, message: str) -> None:
    assert problem(write(sweep)).startswith(message)


def test_invalid_settings_in_the_experiment_or_an_overlay(write: Callable[..., Path], tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("seed: 1\ntraining:\n  epoch: 3\n", encoding="utf-8")
    assert (
        problem(write("seeds: 2\n"), (), [over]) == "over.yaml:3: training.epoch: unknown key. Did you mean 'epochs'?"
    )
    assert problem(write("seeds: 2\n"), ["training.epoch=3"]).startswith("--set: training.epoch: unknown key.")
    over.write_text("model: {name: gpt2}\n", encoding="utf-8")
    message = problem(write("seeds: 2\n"), (), [over])
    assert message == "protocol.yaml:3 with over.yaml:1: model: give exactly one of 'name' and 'from_scratch'"
    assert problem(write(), (), [tmp_path / "none.yaml"]) == "none.yaml: no such file"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.epoch", 3, "HERE: training.epoch: unknown key. Did you mean 'epochs'?"),
        ("foo.bar", 1, "HERE: foo: unknown key."),
        ("training.epochs", 0, "HERE: training.epochs: expected a whole number of at least 1, found 0"),
        ("stream.7.train", 3, "HERE: stream.7.train: stream has 2 items, numbered from 0; there is no item '7'"),
        ("name.x", 3, "HERE: name.x: name is 'base', which has no keys"),
        ("model.name", "gpt2", "FILE:3 with HERE: model: give exactly one of 'name' and 'from_scratch'"),
    ],
)
def test_an_invalid_change(write: Callable[..., Path], key: str, value: object, message: str) -> None:
    path = write("seeds: 2\n")
    protocol = load_protocol(path)
    with pytest.raises(ConfigError) as caught:
        protocol.experiment([change(key, value)])
    assert str(caught.value).replace(str(path), "FILE").startswith(message)


def test_all_origins_of_a_group_are_named(write: Callable[..., Path]) -> None:
    path = write("seeds: 2\n", base="stream: [mini.woz]\nmodel: {name: gpt2}\n")
    one, two = change("model.from_scratch.width", 30, "ONE"), change("model.from_scratch.heads", 4, "TWO")
    with pytest.raises(ConfigError, match=r"^ONE with TWO: model\.from_scratch: width 30 is not a multiple"):
        load_protocol(path).experiment([one, two])
    with pytest.raises(ConfigError, match=r"^--set with ONE: model\.from_scratch: width 30 is not a multiple"):
        load_protocol(path, ["model.name=null", "model.from_scratch.layers=2"]).experiment([one])
    whole = change("model.from_scratch", {"width": 30}, "WHOLE")
    with pytest.raises(ConfigError, match=r"^WHOLE: model\.from_scratch: width 30 is not a multiple"):
        load_protocol(path).experiment([two, whole])
