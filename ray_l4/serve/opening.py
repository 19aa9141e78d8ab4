"""A service made ready: what the command line asks for, checked, and its first model loaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ray_l4.errors import ConfigError
from ray_l4.store.checkpoints import is_model
from ray_l4.store.run_directory import RunDirectory

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class ServeOptions:
    """What the command line asks for. It travels to replicas."""

    folder: Path
    """A run directory, or a checkpoint."""
    host: str
    port: int
    limits: dict[str, object]
    """Keys of ``Limits`` and their values."""
    follow: bool = False
    api_key_file: Path | None = None
    device: str = "auto"
    trusts_code: bool = False

    @property
    def run(self) -> RunDirectory | None:
        """The run that is served; None for a checkpoint. Raises RunDirectoryError if the folder is neither."""
        return None if is_model(self.folder) else RunDirectory.open(self.folder)


def refuse_missing_extra() -> None:
    """Raise ConfigError if the libraries of a service are not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f'serving needs {", ".join(missing)}. Install the extra: pip install "ray-l4[serve]"')
