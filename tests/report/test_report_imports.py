"""The import cost of the report room: no torch, and matplotlib only when a chart is drawn."""

from __future__ import annotations

import subprocess
import sys

LIGHT = ("aggregate", "finished_run", "markdown", "summary", "html.page")
HEAVY = ("matplotlib", "torch", "transformers")


def test_importing_the_reports_imports_neither_torch_nor_matplotlib() -> None:
    imports = "; ".join(f"import ray_l4.report.{name}" for name in LIGHT)
    command = f"import sys; {imports}; print(*sorted({set(HEAVY)!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
