"""Ray actors that import the class they serve only in their own process."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ray_l4.cluster.pulses import beat
from ray_l4.errors import PeerError, RayL4Error, first_line
from ray_l4.workers.out_of_memory import is_out_of_memory, out_of_memory


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
        self.doing = "start"
        if pulse is not None:
            beat(*pulse, lambda: self.doing)
        try:
            self.served = getattr(import_module(module), name)(*arguments)
        except Exception as error:  # whatever it is: each call raises it
            self.failure = out_of_memory(name.lower(), error) if is_out_of_memory(error) else error
        self.doing = "nothing"

    methods = {method: _forwarded(method) for method, _ in inspect.getmembers(calls, inspect.isfunction)}
    public = {method: call for method, call in methods.items() if not method.startswith("_")}
    return type(name, (), {"__init__": build, **public})


def _forwarded(method: str) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        self.doing = method
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
            self.doing = f"nothing, after {method}"

    call.__name__ = call.__qualname__ = method
    return call
