"""The number of subspaces that adapters have, and experiments that O-LoRA cannot learn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError
from ray_l4.methods import extended, resolved


def experiment(method: str = "olora", stages: int = 2, lora: object = None, **changes: object) -> ExperimentConfig:
    model = {"name": "base", "lora": {"rank": 4} if lora is None else lora}
    stream = [f"task{number}" for number in range(stages)]
    return ExperimentConfig.model_validate({"method": method, "stream": stream, "model": model} | changes)


def subspaces(config: ExperimentConfig) -> int | None:
    assert config.model.lora is not None
    return config.model.lora.subspaces


@given(stages=st.integers(1, 12))
def test_there_are_eight_or_one_for_each_stage(stages: int) -> None:
    assert subspaces(resolved(experiment(stages=stages))) == max(8, stages)
    assert subspaces(resolved(experiment("finetune", stages=stages))) is None


@given(stages=st.integers(1, 5), asked=st.integers(1, 9))
def test_a_number_of_one_s_own_counts_if_it_is_enough(stages: int, asked: int) -> None:
    config = experiment(stages=stages, lora={"rank": 4, "subspaces": asked})
    if asked >= stages:
        assert subspaces(resolved(config)) == asked
        return
    with pytest.raises(ConfigError, match=rf"{stages} stages for {asked} subspaces? of the adapters; olora needs one"):
        resolved(config)


def test_their_number_stays_when_a_stream_is_extended_as_far_as_they_suffice() -> None:
    config = resolved(experiment(stages=7))
    longer = resolved(extended(config, [TaskConfig(name="more")]))
    assert subspaces(longer) == 8 and len(longer.stream) == 8
    with pytest.raises(ConfigError, match=r"9 stages for 8 subspaces.*cannot change in a run that has begun"):
        resolved(extended(longer, [TaskConfig(name="evenmore")]))


def test_every_peer_s_adapters_have_them() -> None:
    own = [{}, {"model": {"name": "other"}}, {"model": {"name": "third", "lora": {"rank": 2}}}]
    config = resolved(experiment(peers={"count": 3, "each": own}))
    models = [peer.model for peer in config.peers.each if peer.model is not None]
    assert [(model.lora.rank, model.lora.subspaces) for model in models if model.lora] == [(4, 8), (2, 8)]
    few = [{}, {"model": {"name": "other", "lora": {"rank": 2, "subspaces": 1}}}]
    with pytest.raises(ConfigError, match="2 stages for 1 subspace of the adapters"):
        resolved(experiment(peers={"count": 2, "each": few}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "base"}}, r"model\.lora: olora trains adapters.*Set model\.lora"),
        ({"model": {"from_scratch": {}}}, r"model\.lora: olora trains adapters.*on a pretrained model"),
        ({"optim": {"weight_decay": 0.01}}, r"optim\.weight_decay: 0\.01 would shrink the adapters of earlier tasks"),
        (
            {"method": "ewc", "model": {"name": "base", "lora": {"subspaces": 2}}},
            r"model\.lora\.subspaces: ewc trains the whole adapters.*one subspace a stage: olora",
        ),
    ],
)
def test_what_it_cannot_learn_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(experiment(**changes))  # type: ignore[arg-type]


def test_its_settings_are_those_of_the_paper() -> None:
    config = resolved(experiment())
    assert (config.regulariser.weight, config.optim.weight_decay) == (0.5, 0.0)
    assert resolved(experiment("ewc")).regulariser.weight == 1.0, "that of others stays"
    assert resolved(experiment(regulariser={"weight": 1.0})).regulariser.weight == 1.0
