"""Several language models that learn a stream of tasks together and teach each other at every step, on Ray."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    """Look up ``__version__`` on first use, because importing ``importlib.metadata`` is slow."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ray-l4")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
