"""The scores that the README promises. Two minutes per seed; run with: bash launch/test.sh -m quickstart."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_fixtures import QUICKSTART, REPOSITORY, ray_l4

pytestmark = [pytest.mark.quickstart, pytest.mark.ray, pytest.mark.timeout(900)]

FIVE_MINUTES = 300.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_l4_learns_all_tasks_and_forgets_far_less_than_finetuning(tmp_path: Path, seed: int) -> None:
    began = time.monotonic()
    summaries: dict[str, dict[str, Any]] = {}
    for method in ("l4", "finetune"):
        folder = tmp_path / method
        result = ray_l4(
            *("run", QUICKSTART, "--cluster", REPOSITORY / "cluster_configs" / "laptop.yaml", "--run-dir", folder),
            *("--set", f"method={method}", "--set", f"seed={seed}"),
        )
        assert result.returncode == 0, result.stderr
        summaries[method] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summaries["l4"]["average_accuracy"]["0"] >= 85
    assert summaries["l4"]["forgetting"]["0"] <= summaries["finetune"]["forgetting"]["0"] - 30
    assert time.monotonic() - began <= FIVE_MINUTES
