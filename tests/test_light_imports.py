"""Modules that short commands need must not import slow libraries."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "ray_l4.config.protocol",
    "ray_l4.metrics.continual",
    "ray_l4.methods",
    "ray_l4.metrics.registry",
    "ray_l4.seeds",
    "ray_l4.store.run_directory",
    "ray_l4.tasks.registry",
)
SLOW = (
    "bm25s",
    "nltk",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "ray",
    "rouge_score",
    "tokenizers",
    "torch",
    "transformers",
)


def test_settings_tables_and_run_directories_import_no_slow_library() -> None:
    program = f"import sys, {', '.join(MODULES)}; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_package_alone_does_not_look_up_its_version() -> None:
    """Every command imports ``ray_l4``, but only ``--version`` needs the slow ``importlib.metadata``."""
    program = "import sys, ray_l4; print('importlib.metadata' in sys.modules, ray_l4.__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False ")
