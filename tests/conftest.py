"""What all tests share: the folder of real data sets, where there is one, and no way to the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No test may download: the libraries are told so before they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# One thread: tests run beside each other, and results in the last bits depend on it.
torch.set_num_threads(1)

# How long an example takes says nothing here: the machine may be busy with other tests.
settings.register_profile("ray_l4", deadline=None)
settings.load_profile("ray_l4")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that holds ``raw/``, ``tokenizer/`` and ``models/``; tests that need it are skipped without it."""
    folder = Path(os.environ.get("RAY_L4_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "raw").is_dir():
        pytest.skip(f"no data sets at {folder} (set RAY_L4_DATA to the folder that holds raw/)")
    return folder
