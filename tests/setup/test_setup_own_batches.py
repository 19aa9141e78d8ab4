"""Whether students get batches of their own, if that is left to the project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ModelError
from ray_l4.methods import resolved
from ray_l4.setup.own_batches import as_begun, with_batches
from ray_l4.setup.setup import prepare
from tests.learner import adapter_fixtures as adapted

DROPOUT_FREE = {"layers": 1, "width": 32, "heads": 2, "positions": 64, "dropout": 0.0}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory, adapted.CONFIGS["llama, untied"])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory, GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64))


def saved(factory: pytest.TempPathFactory, config: PreTrainedConfig) -> str:
    folder = factory.mktemp("models") / "base"
    adapted.save_base(folder, config)
    return str(folder)


def decided(model: dict[str, Any], method: str = "l4", **changes: Any) -> str:
    stream = [{"name": "mini.woz", "train": 8, "test": 2}]
    config = {"method": method, "stream": stream, "model": model, **changes}
    return with_batches(resolved(ExperimentConfig.model_validate(config))).distillation.batches


def test_peers_of_a_pretrained_model_without_dropout_have_batches_of_their_own(llama: str) -> None:
    assert decided({"name": llama}) == "own"
    assert decided({"name": llama}, peers={"count": 4, "topology": "ring"}) == "own"
    assert decided({"name": llama}, "l4-onpolicy") == "own", "equal peers predict the same for any answer"
    assert decided({"from_scratch": DROPOUT_FREE}) == "own"


def test_peers_that_differ_anyway_keep_the_batches_that_they_had(llama: str, gpt2: str) -> None:
    assert decided({"name": gpt2}) == "shared", "GPT-2 has dropout"
    assert decided({"name": llama}, peers={"each": [{"dropout": 0.1}, {"dropout": 0.1}]}) == "shared"
    assert decided({"name": gpt2}, peers={"each": [{"dropout": 0.0}, {"dropout": 0.0}]}) == "own"
    assert decided({"name": llama}, peers={"init": "own"}) == "shared", "rows of new tokens differ"
    assert decided({"name": llama, "lora": {"rank": 2}}) == "shared", "adapters have dropout"
    assert decided({"name": llama, "lora": {"rank": 2, "dropout": 0.0}}) == "own"
    assert decided({"name": llama, "lora": {"rank": 2, "dropout": 0.0}}, peers={"init": "own"}) == "shared"
    assert decided({"name": llama}, peers={"each": [{}, {"lr": 1e-3}]}) == "shared"
    assert decided({"from_scratch": DROPOUT_FREE}, peers={"init": "own"}) == "shared"
    assert decided({"from_scratch": DROPOUT_FREE}, peers={"each": [{}, {"seed": 3}]}) == "shared"


def test_where_no_two_learn_from_each_other_at_the_same_time_there_is_nothing_to_decide(llama: str) -> None:
    for method in ("lamol", "lwf", "l2kd-word", "l4-released", "sdft"):
        assert decided({"name": llama}, method) == "shared"
    assert decided({"name": llama}, peers={"topology": []}) == "shared"
    assert decided({"name": llama}, training={"batch_budget": 500.0}) == "shared", "own ones would be refused"


@pytest.mark.parametrize("batches", ["own", "shared"])
def test_what_is_set_stays(llama: str, batches: str) -> None:
    assert decided({"name": llama}, distillation={"batches": batches}) == batches
    assert decided({"name": "nowhere/at-all"}, distillation={"batches": batches}) == batches, "nothing is looked up"


def test_a_run_of_a_version_without_the_setting_goes_on_with_shared_batches(llama: str) -> None:
    stream = [{"name": "mini.woz", "train": 8, "test": 2}]
    experiment = ExperimentConfig.model_validate({"stream": stream, "model": {"name": llama}})
    assert with_batches(as_begun(experiment)).distillation.batches == "shared"
    assert as_begun(with_batches(experiment)).distillation.batches == "own"


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model configuration"):
        decided({"name": str(tmp_path)})


def test_a_model_with_dropout_in_a_nested_configuration(llama: str) -> None:
    from ray_l4.setup.own_batches import _drops

    assert not _drops(LlamaConfig())
    assert _drops(LlamaConfig(attention_dropout=0.1))
    assert not _drops(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)), "summary_first_dropout is unused"


def test_the_decision_is_part_of_the_setup(tmp_path: Path) -> None:
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    adapted.save_base(tmp_path / "base", config)
    stream = [{"name": "mini.woz", "train": 8, "test": 2}]
    model = {"name": str(tmp_path / "base")}
    experiment = ExperimentConfig.model_validate({"stream": stream, "model": model})
    assert prepare(experiment).experiment.distillation.batches == "own"
