"""What ``merge`` is given by mistake: the folder of a run, one that does not exist, or one of anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_l4.errors import ModelError
from ray_l4.setup.mergeable import check_mergeable


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What marks a run directory, without a checkpoint."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{stream: [mini.woz], model: {name: base}}")
    return tmp_path / "run"


def checkpoint(run: Path, stage: int) -> Path:
    folder = run / "checkpoints" / f"stage-{stage}" / "epoch-1" / "student-0"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").touch()
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError, match="expected the folder of a checkpoint with adapters") as caught:
        check_mergeable(folder)
    return str(caught.value)


def test_a_checkpoint_passes(run: Path) -> None:
    check_mergeable(checkpoint(run, 0))


def test_code_that_its_run_trusted_has_to_be_trusted_again(run: Path) -> None:
    (run / "config.yaml").write_text("{stream: [mini.woz], model: {name: base, trust_custom_code: true}}")
    folder = checkpoint(run, 0)
    with pytest.raises(ModelError, match="give --trust-custom-code"):
        check_mergeable(folder)
    check_mergeable(folder, trusts_code=True)


def test_a_run_is_refused_with_one_of_its_checkpoints(run: Path) -> None:
    assert "no checkpoint yet" in refusal(run)
    checkpoint(run, 0)
    last = checkpoint(run, 1)
    assert refusal(run).endswith(f"One of its checkpoints: {last}")


def test_a_folder_that_is_not_there_is_named_with_a_similar_one(run: Path) -> None:
    message = refusal(run.with_name("rum"))
    assert f"{run.with_name('rum')}: no such folder" in message
    assert message.endswith(f"Did you mean {run}?")


def test_any_other_folder_or_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        assert refusal(path).startswith(f"{path}: holds no model")
