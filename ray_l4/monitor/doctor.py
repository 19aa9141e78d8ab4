"""Checks of this machine: versions, hardware and data that runs need, and remedies for what is missing."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from ray_l4.cluster.placement import usable_cores
from ray_l4.config.paths import DATA_VARIABLE, raw_from_environment

_PROJECT = "ray-l4"
_GIB = 2**30
_MIN_FREE_DISK = 2 * _GIB
_MIN_MEMORY = 4 * _GIB
_MIN_SHARED_MEMORY = _GIB
"""Below this, Ray keeps its object store, and with it every exchange, on disk."""
_MODE_VARIABLE, _TOKEN_VARIABLE, _TOKEN_PATH_VARIABLE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_OTHERS = 0o077


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    subject: str
    found: str
    ok: bool
    needed: bool = True
    """True if runs fail without it."""
    remedy: str = ""
    """Advice to the user; empty if ``ok``."""


def examine() -> list[Finding]:
    """Run all checks. Changes, starts and downloads nothing."""
    return [*_python(), *_packages(), *_hardware(), *_data(), *_access()]


def _python() -> Iterator[Finding]:
    ok = sys.version_info >= (3, 11)
    yield Finding("Python", sys.version.split()[0], ok, remedy="" if ok else "ray-l4 needs Python 3.11 or newer.")


def _packages() -> Iterator[Finding]:
    for text in requires(_PROJECT) or []:
        requirement = Requirement(text)
        if requirement.name == _PROJECT:  # an extra may name another one
            continue
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = "not installed"
        ok = found != "not installed" and requirement.specifier.contains(found, prereleases=True)
        extra = f" (only for {requirement.marker})" if optional else ""
        wanted = f"pip install '{text.split(';')[0].strip()}'{extra}"
        yield Finding(requirement.name, found, ok, needed=not optional, remedy="" if ok else wanted)


def _hardware() -> Iterator[Finding]:
    import torch

    cores = usable_cores()
    many = cores >= 2
    advice = "" if many else "Two students must share one core: set students.cpus to 0.5 in the cluster profile."
    yield Finding("CPU cores", str(cores), many, needed=False, remedy=advice)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = memory >= _MIN_MEMORY
    yield Finding("memory", f"{memory / _GIB:.1f} GiB", enough, remedy="" if enough else "A run needs at least 4 GiB.")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    advice = "" if gpus else f"Runs use the CPU. PyTorch {torch.__version__} finds no GPU; is it a CUDA build?"
    yield Finding("GPUs", ", ".join(gpus) or "none", bool(gpus), needed=False, remedy=advice)
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    enough = shared >= _MIN_SHARED_MEMORY
    advice = (
        ""
        if enough
        else "Ray will keep its object store on disk, which is slow (start a container with --shm-size=4g)."
    )
    yield Finding("shared memory", f"{shared / _GIB:.1f} GiB", enough, needed=False, remedy=advice)
    free = shutil.disk_usage(Path.cwd()).free
    enough = free >= _MIN_FREE_DISK
    advice = "" if enough else "Free some space, or choose a --run-dir on another disk."
    yield Finding("free disk here", f"{free / _GIB:.1f} GiB", enough, remedy=advice)


def _data() -> Iterator[Finding]:
    raw = raw_from_environment()
    ok = raw is not None and raw.is_dir()
    advice = "" if ok else f"Needed only for the papers' tasks: set {DATA_VARIABLE} to the folder that contains raw/."
    yield Finding(
        "raw data sets", f"{raw.parent}" if raw else f"{DATA_VARIABLE} is not set", ok, needed=False, remedy=advice
    )


def _access() -> Iterator[Finding]:
    """Check that Ray asks for a token, and that nobody else can read the one that is kept in a file."""
    off = os.environ.get(_MODE_VARIABLE, "token").lower() != "token"
    path = Path(os.environ.get(_TOKEN_PATH_VARIABLE) or Path.home() / ".ray" / "auth_token")
    kept = path.is_file() and not os.environ.get(_TOKEN_VARIABLE)
    remedy = ""
    if off:
        remedy = f"Whoever reaches a Ray without a token can run commands as you: unset {_MODE_VARIABLE}."
    elif kept and path.stat().st_mode & _OTHERS:
        remedy = f"Others can read the token of your clusters: chmod 600 {shlex.quote(str(path))}"
    source = str(path) if kept else "from the environment" if os.environ.get(_TOKEN_VARIABLE) else "drawn for each run"
    yield Finding("Ray's token", "off" if off else source, not remedy, needed=False, remedy=remedy)
