"""``pytest --quick``: leaves out tests by their marks, and fails those that start Ray without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NO_RAY, REPOSITORY
from tests.scheduling import COMMANDS, RAY, group_of

TESTS = """
import pytest

def test_plain():
    pass

def test_of_ray_without_its_mark():
    import ray
    ray.init(address="local", num_cpus=1, include_dashboard=False)

@pytest.mark.ray
def test_of_ray():
    raise AssertionError("not in a quick run")

@pytest.mark.usefixtures("ray_cluster")
def test_of_the_shared_ray():
    raise AssertionError("not in a quick run")

@pytest.mark.processes
def test_of_other_processes():
    raise AssertionError("not in a quick run")

@pytest.mark.slow
def test_of_many_seconds():
    raise AssertionError("not in a quick run")

@pytest.mark.end_to_end
def test_of_a_command():
    raise AssertionError("not in a quick run")

@pytest.mark.parametrize("browser", [None])
def test_of_a_page(browser):
    raise AssertionError("not in a quick run")

@pytest.mark.quickstart
def test_of_the_quickstart():
    raise AssertionError("only with -m quickstart")
"""


@pytest.mark.processes
def test_a_quick_run_leaves_out_slow_tests_and_refuses_ray(tmp_path: Path) -> None:
    (tmp_path / "test_them.py").write_text(TESTS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "tests.conftest", "--quick", tmp_path]
    result = subprocess.run(
        [*map(str, command)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 failed, 1 passed, 7 deselected" in result.stdout
    assert "test_of_ray_without_its_mark" in result.stdout
    assert NO_RAY in result.stdout, "the message names the mark"


def test_files_that_start_ray_or_commands_go_to_one_process_each() -> None:
    tests = REPOSITORY / "tests"
    groups = {
        "launch/test_launch_wait_for_nodes.py": RAY,
        "run/test_run_node_loss.py": RAY,
        "bench/test_bench_exchange.py": RAY,  # its command uses the Ray that tests share
        "cli/test_cli_sweep.py": COMMANDS,
        "cli/test_cli_data.py": COMMANDS,
        "test_seeds.py": str(tests / "test_seeds.py"),
    }
    assert {name: group_of(tests / name) for name in groups} == groups
