"""Settings that a method adds to an experiment, settings it refuses, and the run that trains its teachers."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml, load_experiment
from ray_l4.errors import ConfigError
from ray_l4.methods import (
    ALL_TASKS,
    METHODS,
    TEACHER_METHOD,
    graph_of,
    num_students,
    resolved,
    stages_of,
    teacher_experiment,
)
from ray_l4.setup.setup import Setup, prepare

ADAPTED = {"name": "base", "lora": {"rank": 4}}
SCRATCH = {"from_scratch": {"positions": 128, "layers": 1, "width": 32, "heads": 2}}
names = st.sampled_from(sorted(METHODS))


def model_of(method: str) -> dict[str, object]:
    """The smallest model that the method can train."""
    return dict(ADAPTED if method in METHODS and METHODS[method].needs_adapters else SCRATCH)


def experiment(method: str = "l4", **changes: object) -> ExperimentConfig:
    base: dict[str, object] = {"method": method, "stream": ["mini.woz", "mini.sql"], "model": model_of(method)}
    if method in METHODS and METHODS[method].has_peer_teachers:
        base["teachers"] = {"run": "/a/run", "students": [0, 1]}
    return ExperimentConfig.model_validate(base | changes)


def values(config: ExperimentConfig) -> dict[str, object]:
    """Return every leaf by its dotted key."""
    found: dict[str, object] = {}

    def walk(model: BaseModel, prefix: str) -> None:
        for name in type(model).model_fields:
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                walk(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value

    walk(config, "")
    return found


@given(names)
def test_a_method_changes_only_its_settings(method: str) -> None:
    before, after = values(experiment(method)), values(resolved(experiment(method)))
    wanted = dict(METHODS[method].settings)
    if "model.max_length" in wanted:
        wanted["model.max_length"] = 128
    if METHODS[method].needs_adapters:
        wanted["model.lora.subspaces"] = 8
    assert after == before | wanted


@given(names, st.data())
def test_the_user_s_settings_take_precedence(method: str, data: st.DataObject) -> None:
    """Even if the user's value is the default, which the method would change."""
    own = {
        "distillation.weight": 0.2,
        "distillation.temperature": 3.0,
        "distillation.schedule": "simultaneous",
        "distillation.average": "token",
        "model.max_length": 64,
        "model.task_tokens": "own",
        "replay.ban_task_tokens": False,
        "evaluation.top_k": 1,
    }
    chosen = data.draw(st.sets(st.sampled_from(sorted(own))))
    sections: dict[str, dict[str, object]] = {"model": model_of(method)}
    for key in chosen:
        group, name = key.split(".")
        sections.setdefault(group, {})[name] = own[key]
    found = values(resolved(experiment(method, **sections)))
    assert {key: found[key] for key in chosen} == {key: own[key] for key in chosen}


@given(names)
def test_resolving_is_idempotent(method: str) -> None:
    once = resolved(experiment(method))
    assert resolved(once) == once


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_experiment_survives_its_file(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run reads the file, and the method must not change it again."""
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    once = resolved(experiment(method))
    (tmp_path / "config.yaml").write_text(dump_yaml(once), encoding="utf-8")
    loaded = load_experiment(tmp_path / "config.yaml")
    assert loaded == once
    assert resolved(loaded) == once


def test_the_released_settings_are_those_of_the_authors() -> None:
    """See REFERENCE.md#l4-released."""
    config = resolved(experiment("l4-released", model={"name": "gpt2"}))
    assert config.distillation.model_dump() == {
        "weight": 0.2,
        "temperature": 0.5,
        "average": "vocabulary",
        "direction": "forward",
        "examples": "current",
        "schedule": "alternate_epochs",
        "batches": "auto",
        "on_policy": 0.0,
    }
    assert config.model.max_length == 512
    assert (config.replay.top_k, config.replay.ban_task_tokens, config.replay.generator) == (20, True, "first")
    assert (config.evaluation.top_k, config.evaluation.ban_task_tokens) == (20, True)
    assert (config.training.epochs, config.training.batch_size, config.training.lm_weight) == (9, 4, 0.25)


@pytest.mark.parametrize(("positions", "expected"), [(128, 128), (512, 512), (2048, 512)])
def test_the_length_is_reduced_to_a_model_from_scratch(positions: int, expected: int) -> None:
    scratch = {"from_scratch": {"positions": positions, "layers": 1, "width": 32, "heads": 2}}
    assert resolved(experiment("l4-released", model=scratch)).model.max_length == expected


OWN = {"replay": {"generator": "own"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (OWN | {"distillation": {"examples": "all"}}, "generator: own and distillation.examples: all exclude"),
        (OWN | {"training": {"batch_budget": 100.0}}, "generator: own and training.batch_budget exclude"),
    ],
)
def test_choices_that_exclude_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(experiment(**changes))
    resolved(experiment("lamol", **changes))
    resolved(experiment(peers={"count": 1}, **changes))
    resolved(experiment(**changes | {"replay": {"generator": "pool"}}))


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("l4", {"peers": {"subset": 0.5}}, r"peers\.subset: 0\.5 .* Set distillation\.batches: own"),
        (
            "l4",
            {"distillation": {"batches": "own"}, "training": {"batch_budget": 100.0}},
            r"batches: own and training\.batch_budget exclude each other",
        ),
        ("lamol", {"distillation": {"on_policy": 0.5}}, r"on_policy: .* but lamol has no teachers"),
        (
            "l4",
            {"distillation": {"on_policy": 0.5, "schedule": "alternate_epochs"}},
            r"on_policy: .* but here they learn in turn",
        ),
    ],
)
def test_what_students_cannot_have_of_their_own_is_refused(
    method: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(experiment(method, **changes))


@pytest.mark.parametrize("rest", [{"batches": "own"}, {"schedule": "alternate_epochs"}])
def test_subsets_need_an_order_of_their_own(rest: dict[str, object]) -> None:
    assert resolved(experiment(distillation=rest, peers={"subset": 0.5})).peers.subset == 0.5


def test_an_earlier_state_teaches_only_one_student() -> None:
    with pytest.raises(ConfigError, match=r"peers.count: with lwf .* expected 1 student, not 2"):
        resolved(experiment("lwf", peers={"count": 2}))
    assert num_students(resolved(experiment("lwf", peers={"count": 1}))) == 1


def test_models_of_single_tasks_are_not_peers() -> None:
    with pytest.raises(ConfigError, match=r"peers.count: single-qa-lm trains one model per task.* not 3"):
        resolved(experiment("single-qa-lm", peers={"count": 3}))


@pytest.mark.parametrize(("teachers", "expected"), [({}, 27), ({"epochs": 9}, 9)])
def test_teachers_may_learn_for_fewer_epochs_than_the_student(teachers: dict[str, int], expected: int) -> None:
    config = experiment("multi-seq-kd", training={"epochs": 27, "batch_size": 2}, teachers=teachers)
    assert teacher_experiment(config).training.epochs == expected
    assert teacher_experiment(config).training.batch_size == 2


def test_teachers_of_tasks_learn_alone_whatever_their_students_have_of_their_own() -> None:
    own = {"distillation": {"batches": "own", "on_policy": 0.5}, "peers": {"subset": 0.5}}
    found = teacher_experiment(resolved(experiment("l2kd-word", **own)))
    assert (found.distillation.batches, found.distillation.on_policy, found.peers.subset) == ("shared", 0.0, 1.0)
    resolved(found)


def test_an_unknown_method_is_refused() -> None:
    for look in (resolved, num_students, graph_of, stages_of):
        with pytest.raises(ConfigError, match="unknown method 'l5'"):
            look(experiment("l5"))


@given(names, st.none() | st.integers(1, 5))
def test_the_number_of_students_is_the_requested_one(method: str, count: int | None) -> None:
    config = experiment(method, peers={"count": count})
    assert num_students(config) == (count or METHODS[method].peers)
    assert len(graph_of(config).students) == num_students(config)


@pytest.mark.parametrize("method", METHODS)
def test_stages_are_the_tasks_or_all_of_them_at_once(method: str) -> None:
    at_once = METHODS[method].kind.joint
    assert [stage.name for stage in stages_of(experiment(method))] == (
        [ALL_TASKS] if at_once else ["mini.woz", "mini.sql"]
    )


# --- teachers


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.teacher == "task"])
def test_teachers_learn_with_their_students_settings(method: str) -> None:
    config = resolved(experiment(method, variant="a label", seed=5, peers={"count": 2}, evaluation={"when": "epoch"}))
    teachers = teacher_experiment(config)
    before, after = values(config), values(teachers)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"method", "variant", "seed", "peers.count", "evaluation.when"}
    assert (teachers.method, teachers.variant, teachers.peers.count) == (TEACHER_METHOD, None, 1)
    assert teachers.evaluation.when == "stage"
    assert METHODS[TEACHER_METHOD].stages == "separate", "each task alone, from the start (REFERENCE.md#teachers)"
    assert METHODS[TEACHER_METHOD].heads == ("qa", "lm")
    assert resolved(teachers) == teachers


def test_teachers_have_a_seed_of_their_own() -> None:
    """With its teacher's dropout and order of examples, a student would equal it after the first task."""
    seeds = [teacher_experiment(experiment("l2kd-word", seed=seed)).seed for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert seeds[0] not in (0, 1)


# --- pickling


def test_a_prepared_run_survives_pickling() -> None:
    small = [{"name": "mini.woz", "train": 6, "test": 3}, {"name": "mini.sql", "train": 6, "test": 3}]
    setup = prepare(experiment("l2kd-word", stream=small))
    again: Setup = pickle.loads(pickle.dumps(setup))
    assert (again.experiment, again.method, again.topology) == (setup.experiment, setup.method, setup.topology)
    assert again.fingerprints == setup.fingerprints
    assert again.stages == setup.stages
    assert resolved(again.experiment) == again.experiment, "the copy keeps track of which values were set"
    assert again.tokenizer.gen == setup.tokenizer.gen
