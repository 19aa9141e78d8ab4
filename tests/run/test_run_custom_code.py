"""Models that come with Python code: refused unless the experiment trusts it, and then trained like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import GPT2Config, dynamic_module_utils

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ModelError
from ray_l4.planning.meta_models import meta_model, vocabulary_of
from ray_l4.setup.setup import prepare
from tests.learner.adapter_fixtures import save_base
from tests.run import run_fixtures as small

CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel

Path({ran!r}).touch()

class OwnConfig(GPT2Config):
    model_type = "own"

class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pretrained GPT-2. Copies that the library makes of code are kept out of the home folder."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    return save_base(tmp_path / "plain", GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=160))


@pytest.fixture
def own(plain: Path, tmp_path: Path) -> Path:
    """The same model, as an architecture that only the code beside it defines; ``ran`` tells whether the code ran."""
    folder = tmp_path / "own"
    folder.mkdir()
    for file in plain.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "own_gpt.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    settings = json.loads((plain / "config.json").read_text())
    classes = {"AutoConfig": "own_gpt.OwnConfig", "AutoModelForCausalLM": "own_gpt.OwnModel"}
    (folder / "config.json").write_text(
        json.dumps(settings | {"model_type": "own", "architectures": ["OwnModel"], "auto_map": classes})
    )
    return folder


def experiment(folder: Path, **model: object) -> ExperimentConfig:
    return small.quick("l4", model={"name": str(folder), **model})


def test_code_runs_only_if_the_experiment_trusts_it(own: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"comes with Python code of its own.*model\.trust_custom_code: true"):
        prepare(experiment(own))
    assert not (tmp_path / "ran").exists()
    prepare(experiment(own, trust_custom_code=True))
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_model_with_code_learns_what_the_same_model_without_learns(own: Path, plain: Path, tmp_path: Path) -> None:
    profile = ClusterConfig.model_validate({"exchange": {"transport": "in_process"}})
    expected, _ = small.complete_run(experiment(plain), profile, tmp_path / "expected")
    run, _ = small.complete_run(experiment(own, trust_custom_code=True), profile, tmp_path / "run")
    small.assert_equal(run, expected)
    assert run.experiment().model.trust_custom_code


def test_a_plan_follows_the_same_setting(own: Path, plain: Path) -> None:
    trusting = experiment(own, trust_custom_code=True)
    sizes = [
        sum(parameter.numel() for parameter in meta_model(each.model, vocabulary_of(each)).parameters())
        for each in (trusting, experiment(plain))
    ]
    assert sizes[0] == sizes[1]
    with pytest.raises(ModelError, match="trust_custom_code"):
        vocabulary_of(experiment(own))
