"""What a process measures of itself."""

from __future__ import annotations

import gc
import platform
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

FREED = """
import sys
from ray_l4.workers.process import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024
before = resident()
blocks = [bytearray(8 * 2**20) for _ in range(20)]
for block in blocks:
    block[::4096] = bytes([1]) * len(block[::4096])
del blocks, block
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
@pytest.mark.parametrize("keep", [False, True])
def test_freed_memory_is_kept_if_asked_for(keep: bool) -> None:
    words = [sys.executable, "-c", FREED, "keep" if keep else "return"]
    kept = int(subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert kept > 140 if keep else kept < 20


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
