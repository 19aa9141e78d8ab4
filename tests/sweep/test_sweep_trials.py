"""Expansion of protocols into trials, and messages about invalid ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError
from ray_l4.sweep.scaling import MIN_EXAMPLES, scaled, scaled_settings
from ray_l4.sweep.trials import SweepRequest, expand_protocol
from tests.run.run_fixtures import experiment

TASKS = ["mini.woz", "mini.sql", "mini.rest"]


def protocol(folder: Path, **sweep: object) -> Path:
    """Write a protocol of three embedded tasks and a tiny model, with this ``sweep`` section."""
    path = folder / "protocol.yaml"
    tree = {
        "name": "small",
        "stream": [{"name": name, "train": 200, "test": 50} for name in TASKS],
        "model": {"from_scratch": {"layers": 1, "width": 32, "heads": 2}},
        "training": {"epochs": 9},
    }
    path.write_text(yaml.safe_dump(tree | ({"sweep": sweep} if sweep else {}), sort_keys=False), encoding="utf-8")
    return path


def refusal(path: Path, request: SweepRequest) -> str:
    """Return the message about a protocol that cannot be expanded."""
    with pytest.raises(ConfigError) as caught:
        expand_protocol(path, request)
    return str(caught.value)


def test_trials_are_all_combinations(tmp_path: Path) -> None:
    path = protocol(tmp_path, variants=["lamol", "l4"], grid={"distillation.weight": [0, 0.5]}, orders="all", seeds=2)
    trials = expand_protocol(path, SweepRequest()).trials
    found = {(t.experiment.variant, tuple(t.stream), t.experiment.seed) for t in trials}
    labels = [f"{method} (distillation.weight={weight})" for method in ("lamol", "l4") for weight in ("0", "0.5")]
    assert len(trials) == 4 * 6 * 2
    assert found == set(itertools.product(labels, itertools.permutations(TASKS), (0, 1)))
    assert {t.experiment.distillation.weight for t in trials if t.settings["distillation.weight"] == 0.5} == {0.5}
    assert {t.experiment.method for t in trials} == {"lamol", "l4"}


def test_folders_are_readable_and_the_same_every_time(tmp_path: Path) -> None:
    path = protocol(tmp_path, variants=["l4"], grid={"optim.variant": ["torch"]}, seeds=[7])
    (trial,) = expand_protocol(path, SweepRequest()).trials
    assert trial.name == "l4-optim.variant=torch_mini.woz-mini.sql-mini.rest_s7"
    wider = expand_protocol(path, SweepRequest(orders="all", seeds=8, methods=["lamol", "l4"]))
    assert trial in wider.trials, "existing trials keep their names when more are requested"
    assert len({t.name for t in wider.trials}) == len(wider.trials)


def test_the_command_line_replaces_the_protocol_s_choices(tmp_path: Path) -> None:
    path = protocol(
        tmp_path,
        variants={"long": {"method": "multi-qa", "training.epochs": 27}, "l4": {"method": "l4"}},
        grid={"optim.lr": [1e-3, 1e-4]},
        orders=[TASKS],
        seeds=3,
    )
    order = list(reversed(TASKS))
    request = SweepRequest(
        methods=["long", "er"], grid={"optim.lr": [1.0]}, orders=[order], seeds=[5], overrides=["seed=9"]
    )
    trials = expand_protocol(path, request).trials
    assert [(t.experiment.variant, t.experiment.method, t.experiment.training.epochs) for t in trials] == [
        ("long (optim.lr=1)", "multi-qa", 27),
        ("er (optim.lr=1)", "er", 9),
    ]
    assert {(tuple(t.stream), t.experiment.seed, t.experiment.optim.lr) for t in trials} == {(tuple(order), 5, 1.0)}


def test_seeds_count_from_the_experiments_own(tmp_path: Path) -> None:
    sweep = expand_protocol(protocol(tmp_path), SweepRequest(overrides=["seed=40"], seeds=3))
    assert [trial.experiment.seed for trial in sweep.trials] == [40, 41, 42]
    assert [trial.experiment.variant for trial in sweep.trials] == ["l4"] * 3


def test_methods_that_ignore_the_order_run_in_one_order(tmp_path: Path) -> None:
    path = protocol(tmp_path, variants=["single-qa", "multi-qa-lm", "lamol"], orders="all", seeds=2)
    methods = [trial.experiment.method for trial in expand_protocol(path, SweepRequest()).trials]
    assert (methods.count("single-qa"), methods.count("multi-qa-lm"), methods.count("lamol")) == (2, 2, 12)


def test_a_methods_own_settings_are_filled_in(tmp_path: Path) -> None:
    (trial,) = expand_protocol(protocol(tmp_path, variants=["l4-released"]), SweepRequest()).trials
    assert trial.experiment.distillation.schedule == "alternate_epochs"


@pytest.mark.parametrize(
    ("sweep", "request_", "against"),
    [
        ({"variants": ["lamol", "l4"]}, SweepRequest(), "lamol"),
        ({"variants": ["lamol", "l4"]}, SweepRequest(methods=["l4"]), "lamol"),  # an earlier call may have run it
        ({"variants": ["l4"]}, SweepRequest(methods=["l4", "er"]), "er"),
        ({}, SweepRequest(methods=["lamol"]), "l4"),  # the experiment's own method
        ({"variants": ["lamol"], "grid": {"optim.lr": [0.1, 1]}}, SweepRequest(), "lamol (optim.lr=0.1)"),
    ],
)
def test_the_row_to_compare_with(
    tmp_path: Path, sweep: dict[str, object], request_: SweepRequest, against: str
) -> None:
    assert expand_protocol(protocol(tmp_path, **sweep, against=against), request_).against == against


def test_the_command_line_s_row_to_compare_with_wins(tmp_path: Path) -> None:
    path = protocol(tmp_path, variants=["lamol", "l4"], against="lamol")
    assert [expand_protocol(path, SweepRequest(against=asked)).against for asked in ("l4", "none")] == ["l4", None]
    path = protocol(tmp_path, variants=["lamol"], against="none")
    assert expand_protocol(path, SweepRequest()).against is None


def test_a_row_to_compare_with_that_the_protocol_does_not_have(tmp_path: Path) -> None:
    assert expand_protocol(protocol(tmp_path, variants=["l4"]), SweepRequest()).against is None
    path = protocol(tmp_path, variants=["lamol", "l4"], against="lamoll")
    message = refusal(path, SweepRequest())
    assert "protocol.yaml:" in message
    assert message.endswith("against: the protocol has no row 'lamoll'. Did you mean 'lamol'?")
    assert refusal(path, SweepRequest(against="l5")).startswith("--against: the protocol has no row 'l5'. ")
    varied = protocol(tmp_path, variants=["lamol"], grid={"optim.lr": [0.1]}, against="lamol")
    assert "no row 'lamol'. Known: lamol (optim.lr=0.1)." in refusal(varied, SweepRequest())


# --- scale ---


def test_scale_applies_to_files_and_not_to_the_command_line(tmp_path: Path) -> None:
    path = protocol(tmp_path, variants={"same": {}, "long": {"training.epochs": 27}}, title="Three tasks")
    sweep = expand_protocol(path, SweepRequest(scale=1 / 3, overrides=["stream.1.train=150"]))
    assert sweep.title == "Three tasks, scaled to 0.333333 of its examples and epochs"
    assert [t.experiment.training.epochs for t in sweep.trials] == [3, 9]
    assert [(task.train, task.test) for task in sweep.trials[0].experiment.stream] == [(67, 20), (150, 20), (67, 20)]
    sweep = expand_protocol(path, SweepRequest(scale=0.1, grid={"training.epochs": [4]}, methods=["same"]))
    assert [t.experiment.training.epochs for t in sweep.trials] == [4]
    assert expand_protocol(path, SweepRequest()).title == "Three tasks"


def test_the_papers_sizes_scale_and_all_stays_all() -> None:
    config = experiment(stream=["woz.en", {"name": "wikisql", "train": "all", "test": 30}], training={"epochs": 9})
    assert scaled(config, 0.1) == {
        "stream.0.train": 254,
        "stream.0.test": 165,
        "stream.1.test": MIN_EXAMPLES,
        "training.epochs": 1,
    }
    own = [{"name": "mine", "path": "data", "metric": "em", "test": 12}]
    assert scaled(experiment(stream=own), 0.5) == {"stream.0.test": 12, "training.epochs": 1}
    assert scaled_settings({"optim.lr": 1, "training.batch_size": 8}, 0.1) == {"optim.lr": 1, "training.batch_size": 8}


def test_epochs_of_teachers_scale_where_they_are_given(tmp_path: Path) -> None:
    assert scaled(experiment(teachers={"epochs": 9}, training={"epochs": 18}), 1 / 3) == {
        "stream.0.train": 20,
        "stream.0.test": 8,
        "stream.1.train": 20,
        "stream.1.test": 8,
        "training.epochs": 6,
        "teachers.epochs": 3,
    }
    assert "teachers.epochs" not in scaled(experiment(), 0.5), "by default the student's epochs"
    path = protocol(tmp_path, variants={"own": {"teachers.epochs": 12}, "same": {"teachers.epochs": None}})
    sweep = expand_protocol(path, SweepRequest(scale=1 / 3, overrides=["teachers.epochs=5"]))
    assert [trial.experiment.teachers.epochs for trial in sweep.trials] == [4, None]


def test_scale_changes_nothing_but_the_stream_and_training() -> None:
    """As documented in ``docs/SWEEPS.md``."""
    sizes = {"regulariser": {"examples": 100}, "replay": {"capacity": 100}, "evaluation": {"limit": 100}}
    assert {key.split(".")[0] for key in scaled(experiment(**sizes), 0.1)} == {"stream", "training"}


@given(size=st.integers(1, 10**6), epochs=st.integers(1, 100), scale=st.floats(1e-3, 1))
def test_scaled_sizes_are_sane(size: int, epochs: int, scale: float) -> None:
    config = experiment(stream=[{"name": "mini.woz", "train": size, "test": size}], training={"epochs": epochs})
    changed = ExperimentConfig.model_validate(
        config.model_dump()
        | {"stream": [{"name": "mini.woz", "train": scaled(config, scale)["stream.0.train"]}]}
        | {"training": {"epochs": scaled(config, scale)["training.epochs"]}}
    )
    train = changed.stream[0].train
    assert isinstance(train, int)
    assert min(size, MIN_EXAMPLES) <= train <= size
    assert abs(train - size * scale) <= 0.5 or train == min(size, MIN_EXAMPLES)
    assert 1 <= changed.training.epochs <= epochs


@pytest.mark.parametrize("scale", [0, -1, 1.5, float("nan"), float("inf")])
def test_an_invalid_scale_is_refused(tmp_path: Path, scale: float) -> None:
    assert "above 0 and at most 1" in refusal(protocol(tmp_path), SweepRequest(scale=scale))


# --- paths ---


@pytest.mark.parametrize("unrelated", [None, "teachers.epochs=3", "regulariser.weight=0.5"])
def test_paths_start_where_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unrelated: str | None
) -> None:
    """Relative to the file's folder, or for an option to the working directory, whatever else is set."""
    for name in ("here", "file"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = protocol(tmp_path / "file", variants={"a": {"teachers.run": "mine"}})
    others = [unrelated] if unrelated else []
    (trial,) = expand_protocol(path, SweepRequest(overrides=[*others, "teachers.run=theirs"])).trials
    assert trial.experiment.teachers.run == tmp_path / "file" / "mine", "a variant wins, with its own folder"
    (trial,) = expand_protocol(path, SweepRequest(overrides=others, grid={"teachers.run": ["mine"]})).trials
    assert trial.experiment.teachers.run == tmp_path / "here" / "mine"
    (trial,) = expand_protocol(path, SweepRequest(overrides=[*others, "teachers.run=mine"], methods=["l4"])).trials
    assert trial.experiment.teachers.run == tmp_path / "here" / "mine"
    path = protocol(tmp_path / "file", grid={"teachers.run": ["mine", "theirs"]})
    trials = expand_protocol(path, SweepRequest(overrides=others)).trials
    assert [t.experiment.teachers.run for t in trials] == [tmp_path / "file" / "mine", tmp_path / "file" / "theirs"]


def test_paths_of_an_overlays_sweep_start_at_its_folder(tmp_path: Path) -> None:
    (tmp_path / "over").mkdir()
    overlay = tmp_path / "over" / "over.yaml"
    overlay.write_text("sweep: {variants: {a: {teachers.run: mine}}}\n", encoding="utf-8")
    path = protocol(tmp_path, variants={"a": {"data.converted": "own"}, "b": {"teachers.run": "own"}})
    sweep = expand_protocol(path, SweepRequest(overlays=[overlay]))
    assert [trial.experiment.teachers.run for trial in sweep.trials] == [tmp_path / "over" / "mine", tmp_path / "own"]
    assert sweep.trials[0].experiment.data.converted == tmp_path / "own"


# --- refusals ---


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (SweepRequest(grid={"training.epoch": [1]}), "--grid: training.epoch: unknown key. Did you mean 'epochs'?"),
        (SweepRequest(grid={"foo.bar": [1]}), "--grid: foo: unknown key."),
        (SweepRequest(grid={"training.epochs": [0]}), "--grid: training.epochs: expected a whole number of at least 1"),
        (SweepRequest(grid={"training.epochs": [2, 2]}), "--grid: training.epochs: 2 "),
        (SweepRequest(grid={"seed": [2]}), "--grid: seed: is set by the sweep itself; use sweep.seeds or --seeds"),
        (SweepRequest(methods=["l5"]), "unknown method or variant 'l5'. Did you mean 'l4'?"),
        (SweepRequest(methods=["l4", "l4"]), "--methods: 'l4' is listed twice"),
        (
            SweepRequest(orders=[["mini.woz", "mini.sq", "mini.rest"]]),
            "task 'mini.sq' is not in the stream. Did you mean",
        ),
        (
            SweepRequest(orders=[["mini.woz", "mini.sql"]]),
            "mini.rest is missing; an order lists every task of the stream",
        ),
        (SweepRequest(orders=[[*TASKS, "mini.woz"]]), "task 'mini.woz' is listed twice"),
        (
            SweepRequest(orders="all", seeds=40),
            "240 trials exceed the limit of 200 (rows: 1, orders of 3 tasks: 6, seeds: 40)",
        ),
        (
            SweepRequest(grid={"optim.lr": list(range(1, 301))}),
            "the grid has 300 points, more than the limit of 200 trials",
        ),
        (SweepRequest(overrides=["stream.0.name=mini.wozz"]), "Unknown task 'mini.wozz'"),
        (SweepRequest(overrides=["replay.generator=own", "distillation.examples=all"]), "exclude each other"),
    ],
)
def test_invalid_requests_are_refused(tmp_path: Path, request_: SweepRequest, message: str) -> None:
    refused = refusal(protocol(tmp_path), request_)
    assert message in refused
    assert "--set with" not in refused


def test_errors_in_orders_and_variants_name_the_line_of_the_file(tmp_path: Path) -> None:
    path = protocol(tmp_path, orders=[["mini.woz"]])
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "orders" in text)
    assert refusal(path, SweepRequest()).startswith(f"{path}:{line}: order mini.woz: mini.sql, mini.rest is missing")
    path = protocol(tmp_path, variants={"typo": {"optim.lrate": 1}})
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "optim.lrate" in text)
    assert refusal(path, SweepRequest()) == f"{path}:{line}: optim.lrate: unknown key. Did you mean 'lr'?"


def test_permutations_are_counted_before_they_are_built(tmp_path: Path) -> None:
    stream = [f"{{name: mine{n}, path: x, metric: em}}" for n in range(14)]
    message = refusal(protocol(tmp_path), SweepRequest(overrides=[f"stream=[{', '.join(stream)}]"], orders="all"))
    assert message.startswith("87178291200 trials")


def test_seeds_are_counted_before_they_are_listed(tmp_path: Path) -> None:
    assert "seeds: 3000000000)" in refusal(protocol(tmp_path), SweepRequest(seeds=3_000_000_000))
    assert "at most 1_048_576" in refusal(protocol(tmp_path, seeds=3_000_000_000), SweepRequest())


def test_labels_with_equal_or_too_long_names_are_refused(tmp_path: Path) -> None:
    path = protocol(tmp_path, variants={"a b": {}, "a/b": {"training.epochs": 2}})
    assert "'a b' and 'a/b' would share the run directory" in refusal(path, SweepRequest())
    assert "too long" in refusal(protocol(tmp_path, variants={"x" * 250: {}}), SweepRequest())


def test_long_names_of_tasks_shorten_the_folder_but_orders_stay_apart(tmp_path: Path) -> None:
    stream = [f"{{name: {'任务' * 30}{n}, path: x, metric: em}}" for n in range(3)]
    request = SweepRequest(overrides=[f"stream=[{', '.join(stream)}]"], orders="all")
    names = [trial.name for trial in expand_protocol(protocol(tmp_path), request).trials]
    assert len(set(names)) == 6 and max(len(name.encode()) for name in names) <= 200
    assert "too long" in refusal(protocol(tmp_path, variants={"名" * 90: {}}), SweepRequest())
