"""What a process measures of itself."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from ray_l4.workers.process import collection_paused

MIB = 2**20
PARENT = """
import subprocess, sys
ballast = bytearray(400 * 2**20)
ballast[::4096] = bytes([1]) * len(ballast[::4096])
child = "from ray_l4.workers.process import peak_resident_bytes; print(peak_resident_bytes())"
subprocess.run([sys.executable, "-c", child], check=True, preexec_fn=lambda: None)
"""


def test_the_peak_memory_of_a_process_is_not_that_of_its_parent() -> None:
    """``preexec_fn`` makes Python fork, as multiprocessing does."""
    result = subprocess.run([sys.executable, "-c", PARENT], check=True, capture_output=True, text=True, timeout=60)
    assert MIB < int(result.stdout) < 300 * MIB


def test_the_collection_of_garbage_pauses_and_goes_on_after_an_error() -> None:
    try:
        with pytest.raises(ImportError), collection_paused():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() and gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
