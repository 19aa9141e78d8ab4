"""Language models that learn a stream of tasks together and teach each other at every step, on Ray."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ray-l4")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
