"""Ray actors that import the class they serve only in their own process."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import ray

from ray_l4.cluster.pulses import beat
from ray_l4.errors import PeerError, RayL4Error, first_line
from ray_l4.workers.out_of_memory import is_out_of_memory, out_of_memory
from ray_l4.workers.process import collection_paused, keep_freed_memory


def actor_class(calls: type[Any], served: str) -> type[Any]:
    """Build an actor class with the public methods of the interface ``calls``, each forwarded to a ``served`` object.

    ``served``: ``module:class``, imported where the actor runs. If its constructor raises an error, every call raises
    that error; otherwise Ray would report that the actor died, without the class of the error. An error of a call that
    is not a RayL4Error becomes a PeerError that names the ``served`` object (its ``str``) and the error's class, or, if
    it ran out of memory, what to do.
    With ``pulse``, a name and a limit in seconds, the actor shows that it is alive (``cluster.pulses``).
    """
    module, _, name = served.partition(":")

    def build(self: Any, *arguments: Any, pulse: tuple[str, float] | None = None) -> None:
        self.failure = self.served = None
        self.span = time.time(), "start"
        keep_freed_memory()
        if pulse is not None:
            beat(*pulse, lambda: _named(self.span, self.served))
        try:
            with collection_paused():
                served_class = getattr(import_module(module), name)
            self.served = served_class(*arguments)
        except Exception as error:  # whatever it is: each call raises it
            self.failure = out_of_memory(name.lower(), error) if is_out_of_memory(error) else error
        self.span = time.time(), "idle"

    public = {
        method: ray.method(num_returns=getattr(call, "num_results", 1))(_forwarded(method))
        for method, call in inspect.getmembers(calls, inspect.isfunction)
        if not method.startswith("_")
    }
    return type(name, (), {"__init__": build, **public})


def _named(span: tuple[float, str], served: Any) -> tuple[float, str]:
    """Return a span with the position of who is in it. Called at every beat, so that calls need not do it."""
    since, what = span
    return since, what if served is None else f"{what} ({served})"


def _forwarded(method: str) -> Callable[..., Any]:
    after = f"idle after {method}"

    def call(self: Any, *arguments: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        self.span = time.time(), method
        try:
            return getattr(self.served, method)(*arguments)
        except RayL4Error:
            raise
        except Exception as error:  # a call that depends on this one would otherwise be named in its place
            if is_out_of_memory(error):
                raise out_of_memory(self.served, error) from error
            raise PeerError(
                f"{self.served}: {type(error).__name__}: {first_line(error)} (--debug prints the worker's traceback)"
            ) from error
        finally:
            self.span = time.time(), after

    call.__name__ = call.__qualname__ = method
    return call
