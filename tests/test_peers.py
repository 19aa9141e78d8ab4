"""Settings of single peers (seed, learning rate, dropout, model), and those that all peers must share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml, load_experiment
from ray_l4.errors import ConfigError
from ray_l4.methods import METHODS, peer_experiment, peer_seed, peer_settings, resolved

SCRATCH = {"layers": 1, "width": 32, "heads": 2, "vocabulary": 400, "dropout": 0.1}


def experiment(each: list[dict[str, Any]], method: str = "l4", **changes: Any) -> ExperimentConfig:
    base: dict[str, Any] = {"method": method, "seed": 3, "stream": ["mini.woz"], "model": {"from_scratch": SCRATCH}}
    return ExperimentConfig.model_validate(base | {"peers": {"count": len(each) or None, "each": each}} | changes)


def test_without_differences_every_peer_learns_with_the_experiment() -> None:
    config = resolved(experiment([]))
    for peer in (0, 1, 7):
        assert peer_experiment(config, peer) == config
        assert peer_seed(config, peer) == 3


def test_every_peer_has_its_own_values_and_all_others_in_common() -> None:
    config = resolved(
        experiment([{}, {"lr": 0.5, "seed": 9}, {"dropout": 0.0}, {"model": {"from_scratch": {"width": 8}}}])
    )
    plain, fast, still, narrow = (peer_experiment(config, peer) for peer in range(4))
    assert plain == config
    assert fast.optim == config.optim.model_copy(update={"lr": 0.5})
    assert fast.model == config.model
    assert [peer_seed(config, peer) for peer in range(4)] == [3, 9, 3, 3]
    assert {own.seed for own in (plain, fast, still, narrow)} == {3}, "all peers share the order of the examples"
    assert still.model.from_scratch.model_dump() == SCRATCH | {"dropout": 0.0, "positions": 512}  # type: ignore[union-attr]
    assert narrow.model.from_scratch.model_dump() == SCRATCH | {"width": 8, "positions": 512}  # type: ignore[union-attr]
    assert narrow.training == still.training == config.training


def test_zero_is_a_seed() -> None:
    assert peer_seed(experiment([{"seed": 0}, {}]), 0) == 0


def test_a_pretrained_peer_inherits_all_but_the_keys_of_its_source() -> None:
    lora = {"rank": 4}
    common = {"name": "gpt2", "lora": lora, "precision": "bfloat16", "max_length": 100, "spare_task_tokens": 3}
    config = resolved(
        experiment([{}, {"model": {"name": "gpt2-medium"}}, {"model": {"name": "x", "lora": None}}], model=common)
    )
    own = peer_experiment(config, 1).model
    assert own.lora == config.model.lora
    assert (own.name, own.precision, own.max_length, own.spare_task_tokens) == ("gpt2-medium", "bfloat16", None, 3)
    assert peer_experiment(config, 2).model.lora is None


each_of_one = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 9),
        "lr": st.floats(1e-6, 1),
        "dropout": st.floats(0, 1),
        "model": st.builds(
            lambda n, p: {"from_scratch": {"layers": n, "positions": p}}, st.integers(1, 3), st.integers(8, 64)
        ),
    },
)


@given(st.lists(each_of_one, min_size=1, max_size=4))
def test_a_resolved_experiment_is_complete(each: list[dict[str, Any]]) -> None:
    once = resolved(experiment(each))
    assert resolved(once) == once
    plain = ExperimentConfig.model_validate(once.model_dump(mode="json"))  # every key is set, as in a run's config.yaml
    assert [peer_experiment(resolved(plain), i) for i in range(len(each))] == [
        peer_experiment(once, i) for i in range(len(each))
    ]


def test_resolved_peers_survive_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    once = resolved(experiment([{"dropout": 0.5}, {"model": {"from_scratch": {"width": 64}}}]))
    (tmp_path / "config.yaml").write_text(dump_yaml(once), encoding="utf-8")
    assert resolved(load_experiment(tmp_path / "config.yaml")) == once


def test_a_model_in_the_experiment_s_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    (tmp_path / "mine").mkdir()
    text = "stream: [mini.woz]\nmodel: {name: gpt2}\npeers: {each: [{}, {model: {name: mine}}]}\n"
    (tmp_path / "e.yaml").write_text(text)
    models = [own.model for own in load_experiment(tmp_path / "e.yaml").peers.each]
    assert models[1] is not None and models[1].name == str(tmp_path / "mine")


@pytest.mark.parametrize("count", [1, 3])
def test_there_is_one_item_for_each_student(count: int) -> None:
    with pytest.raises(ConfigError, match=rf"peers\.each: 2 items for {count} students?; expected one per student"):
        resolved(experiment([{}, {}], peers={"count": count, "each": [{}, {"lr": 1e-3}]}))


def test_the_default_number_of_students_is_the_method_s() -> None:
    with pytest.raises(ConfigError, match=r"peers\.each: 3 items for 2 students"):
        resolved(experiment([], peers={"each": [{}, {}, {}]}))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"from_scratch": {"vocabulary": 500}},
            r"model\.from_scratch\.vocabulary: peer 1 has 500, the others have 400",
        ),
        ({"from_scratch": {}, "task_tokens": "shared"}, r"model\.task_tokens: peer 1 has shared, the others have own"),
        ({"from_scratch": {}, "spare_task_tokens": 2}, r"model\.spare_task_tokens: peer 1 has 2, the others have 8"),
        ({"name": "gpt2"}, "peer 1 has a pretrained model, the others have a model from scratch; their tokenisers"),
    ],
)
def test_settings_that_peers_must_share(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(experiment([{}, {"model": own}]))


def test_inherited_values_must_be_consistent() -> None:
    with pytest.raises(
        ConfigError, match=r"peers\.each\.1\.model: width 36 is not a multiple of heads 8 \(keys that it does not"
    ):
        resolved(
            experiment([{}, {"model": {"from_scratch": {"width": 36}}}], model={"from_scratch": SCRATCH | {"heads": 8}})
        )


def test_the_other_way_round_a_model_from_scratch_is_refused() -> None:
    with pytest.raises(ConfigError, match="peer 0 has a model from scratch, the others have a pretrained model"):
        resolved(experiment([{"model": {"from_scratch": {}}}, {}], model={"name": "gpt2"}))


# --- methods with frozen teachers, and with models that are no peers


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.teacher == "task"])
def test_a_task_teacher_has_the_common_model(method: str) -> None:
    config = resolved(experiment([{"lr": 1.0, "model": {"from_scratch": {"width": 8}}}], method))
    student, teacher = peer_experiment(config, 0), peer_experiment(config, 1)
    assert student.model.from_scratch is not None and student.model.from_scratch.width == 8
    assert teacher.model == config.model
    assert peer_settings(config, 1).lr is None


def test_an_earlier_state_has_the_student_s_settings() -> None:
    config = resolved(experiment([{"seed": 8, "model": {"from_scratch": {"width": 8}}}], "lwf"))
    assert peer_experiment(config, 1) == peer_experiment(config, 0) != config


def test_models_of_single_tasks_may_have_their_own_settings() -> None:
    assert peer_experiment(resolved(experiment([{"lr": 0.25}], "single-qa")), 0).optim.lr == 0.25
