"""Language models that learn a stream of tasks together and teach each other at every step, on Ray."""

from typing import TYPE_CHECKING

__version__: str

if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        """Look up ``__version__`` when it is asked for: the look-up takes 30 ms, and few processes need it."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("ray-l4")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
