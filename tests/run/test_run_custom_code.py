"""Models that come with Python code: refused unless the experiment trusts it, and then trained like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import GPT2Config, dynamic_module_utils

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ModelError, PeerError
from ray_l4.planning.meta_models import meta_model, vocabulary_of
from ray_l4.setup.setup import prepare
from tests.cli.cli_fixtures import InThisProcess, refused
from tests.learner.adapter_fixtures import save_base
from tests.run import run_fixtures as small

MODEL = ModelError.exit_code
CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel
from .own_parts import RAN

Path(RAN).touch()

class OwnConfig(GPT2Config):
    model_type = "own"

class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module", autouse=True)
def _modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copies that the library makes of code are kept out of the home folder, in one place: it is a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pretrained GPT-2."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    return save_base(tmp_path / "plain", GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=160))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InThisProcess:
    """Function that runs ``ray-l4`` in this process."""
    return InThisProcess(monkeypatch, capsys)


@pytest.fixture
def own(plain: Path, tmp_path: Path) -> Path:
    """The same model, as an architecture that only the code beside it defines; ``ran`` tells whether the code ran."""
    folder = tmp_path / "own"
    folder.mkdir()
    for file in plain.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "own_gpt.py").write_text(CODE)
    (folder / "own_parts.py").write_text(f"RAN = {str(tmp_path / 'ran')!r}\n")
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


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
def test_commands_on_a_run_have_to_be_told_to_trust_the_code_too(
    adapters: bool, own: Path, tmp_path: Path, command: InThisProcess
) -> None:
    lora = {"lora": {"rank": 2, "targets": ["c_attn"]}} if adapters else {}
    config = experiment(own, trust_custom_code=True, **lora)
    run, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "run")
    for words in (["evaluate", run.path], ["evaluate", run.path, "--experiment", run.path / "config.yaml"]):
        refused(command(*words), MODEL, str(run.path), "give --trust-custom-code")
    question = ("ask", run.path, "--task", "mini.woz", "--context", "a", "--question", "b")
    refused(command(*question), MODEL, "--trust-custom-code")
    assert command(*question, "--trust-custom-code").returncode == 0
    refused(command("generate", run.path, "--task", "mini.woz", "-n", "1"), MODEL, "--trust-custom-code")
    scored = command("evaluate", run.path, "--json", "--trust-custom-code")
    assert scored.returncode == 0, scored.stderr
    found = [json.loads(line) for line in scored.stdout.splitlines()]
    recorded = [cell for cell in run.scores() if cell.stage == 1]
    assert len(found) == len(recorded) == 4
    for cell in recorded:
        (row,) = [row for row in found if (row["student"], row["task"]) == (cell.student, cell.task)]
        assert row.items() >= run.scores()[cell]["values"].items()
    example = command("generate", run.path, "--task", "mini.woz", "-n", "1", "--trust-custom-code")
    assert example.returncode == 0 and json.loads(example.stdout)["valid"] in (True, False)
    if adapters:
        checkpoint = run.checkpoint(1, 3, 0)
        refused(command("merge", checkpoint, tmp_path / "merged"), MODEL, "--trust-custom-code")
        merged = command("merge", checkpoint, tmp_path / "merged", "--trust-custom-code")
        assert merged.returncode == 0, merged.stderr
        assert (tmp_path / "merged" / "own_gpt.py").is_file(), "the merged model takes its code along"


@pytest.mark.slow
def test_a_checkpoint_takes_its_code_along(own: Path, tmp_path: Path, command: InThisProcess) -> None:
    run, _ = small.complete_run(experiment(own, trust_custom_code=True), small.cluster("in_process"), tmp_path / "run")
    checkpoint = tmp_path / "copied--to another place"
    shutil.copytree(run.checkpoint(1, 3, 1), checkpoint)
    shutil.rmtree(own)
    words = ("evaluate", checkpoint, "--task", "mini.woz", "--limit", "3")
    refused(command(*words), MODEL, "code of its own", "give --trust-custom-code")
    result = command(*words, "--trust-custom-code")
    assert result.returncode == 0 and json.loads(result.stdout)["examples"] == 3, result.stderr
    with (checkpoint / "own_parts.py").open("a") as file:
        file.write("# changed\n")
    refused(command(*words, "--trust-custom-code"), MODEL, "own_parts.py")


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
def test_a_run_with_code_for_a_known_architecture_is_not_scored_with_another_code(
    adapters: bool, own: Path, tmp_path: Path, command: InThisProcess
) -> None:
    """Without trust, Transformers would silently take its own class of that architecture."""
    settings = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(settings | {"model_type": "gpt2"}))
    config = experiment(own, trust_custom_code=True, **({"lora": {"rank": 2}} if adapters else {}))
    run, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "run")
    checkpoint = run.checkpoint(1, 3, 0)
    assert (checkpoint / "own_gpt.py").is_file() is not adapters, "adapters name the folder of their model"
    refused(command("evaluate", run.path), MODEL, "give --trust-custom-code")
    if adapters:
        refused(command("merge", checkpoint, tmp_path / "merged"), MODEL, "give --trust-custom-code")


@pytest.mark.slow
def test_a_peer_of_somebody_elses_run_is_not_trusted_either(
    own: Path, plain: Path, tmp_path: Path, command: InThisProcess
) -> None:
    """The longest sequence of a run depends on the models of all its peers."""
    peers = {"each": [{}, {"model": {"name": str(own), "trust_custom_code": True}}]}
    config = small.quick("l4", model={"name": str(plain)}, peers=peers)
    run, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "run")
    refused(command("evaluate", run.path, "--student", "0"), MODEL, str(run.path), "give --trust-custom-code")
    assert command("evaluate", run.path, "--student", "0", "--trust-custom-code").returncode == 0


def test_a_failed_step_is_repeated_with_code_that_is_trusted(own: Path, tmp_path: Path, command: InThisProcess) -> None:
    config = small.quick(
        "l4", model={"name": str(own), "trust_custom_code": True}, optim={"variant": "torch", "lr": 1e30, "warmup": 0.0}
    )
    with pytest.raises(PeerError, match="not finite"):
        small.complete_run(config, small.cluster("in_process"), tmp_path / "run")
    refused(command("debug-batch", tmp_path / "run"), MODEL, "--trust-custom-code")
    assert command("debug-batch", tmp_path / "run", "--trust-custom-code").returncode == 0
