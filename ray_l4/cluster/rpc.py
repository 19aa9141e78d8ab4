"""How calls and predictions travel: one small interface, with and without Ray.

Whoever drives the peers submits calls and gets back references; a reference may be handed to another call as an
argument, and its value then goes from worker to worker without passing through the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from ray_l4.errors import PeerError, PeerLostError, RayL4Error

_DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError)


class Transport(Protocol):
    """The way to the workers."""

    one_process: bool
    """Whether all workers live in this process."""

    def submit(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Call ``worker.method(*arguments)``, in order per worker; gives a reference to the result.

        A worker may be a tuple of ranks that act as one: all are called, and the result is that of the first.
        """

    def put(self, value: Any) -> Any:
        """A reference to ``value``, stored once for all who read it."""

    def get(self, reference: Any, timeout: float, waiting_for: str) -> Any:
        """The value behind a reference. Raises PeerLostError, with ``waiting_for`` in it, if none came in ``timeout`` s
        or its worker died; PeerError if it failed."""

    def get_all(self, references: Sequence[Any], timeout: float, waiting_for: str) -> list[Any]:
        """The values behind references, within ``timeout`` s in all. Raises as soon as one of them has failed."""

    def ready(self, references: Sequence[Any]) -> list[Any]:
        """Those of the references whose value (or error) is there, without waiting."""

    def end(self, worker: Any) -> None:
        """The worker is not needed any more."""


@dataclass(frozen=True, eq=False)
class _Value:
    """A reference in one process is the value itself, or the error that came instead."""

    value: Any = None
    error: RayL4Error | None = None


class InProcess:
    """All workers are objects of this process and calls run at once: the reference."""

    one_process = True

    def submit(self, worker: Any, method: str, *arguments: Any) -> _Value:
        if isinstance(worker, tuple):
            first, *_ = [self.submit(rank, method, *arguments) for rank in worker]
            return first
        values = [a.value if isinstance(a, _Value) else a for a in arguments]
        failed = [a.error for a in arguments if isinstance(a, _Value) and a.error is not None]
        if failed:
            return _Value(error=failed[0])
        try:
            return _Value(getattr(worker, method)(*values))
        except RayL4Error as error:
            return _Value(error=error)

    def put(self, value: Any) -> _Value:
        return _Value(value)

    def get(self, reference: _Value, timeout: float, waiting_for: str) -> Any:
        if reference.error is not None:
            raise reference.error
        return reference.value

    def get_all(self, references: Sequence[_Value], timeout: float, waiting_for: str) -> list[Any]:
        return [self.get(reference, timeout, waiting_for) for reference in references]

    def ready(self, references: Sequence[Any]) -> list[Any]:
        return list(references)

    def end(self, worker: Any) -> None:
        """Nothing to do: it is an object like any other."""


class ObjectStore:
    """Workers are Ray actors; values travel through the object store (RAY.md 2 and 3)."""

    one_process = False

    def submit(self, worker: Any, method: str, *arguments: Any) -> ray.ObjectRef:
        if isinstance(worker, tuple):
            first, *_ = [self.submit(rank, method, *arguments) for rank in worker]
            return first
        return getattr(worker, method).remote(*arguments)

    def put(self, value: Any) -> ray.ObjectRef:
        return ray.put(value)

    def get(self, reference: Any, timeout: float, waiting_for: str) -> Any:
        return self.get_all([reference], timeout, waiting_for)[0]

    def get_all(self, references: Sequence[Any], timeout: float, waiting_for: str) -> list[Any]:
        try:
            return ray.get(list(references), timeout=timeout)
        except GetTimeoutError:
            raise PeerLostError(
                f"{waiting_for}: no answer within {timeout:g} s (timeouts in the cluster profile)"
            ) from None
        except RayTaskError as error:  # first, as it is also of the kind of its cause
            raise _cause(error, waiting_for) from error
        except RayError as error:
            raise _of_ray(error, waiting_for, "its process") from error

    def ready(self, references: Sequence[Any]) -> list[Any]:
        if not references:
            return []
        done, _ = ray.wait(list(references), num_returns=len(references), timeout=0, fetch_local=False)
        return done

    def end(self, worker: Any) -> None:
        for rank in worker if isinstance(worker, tuple) else (worker,):
            ray.kill(rank)


def _cause(error: RayTaskError, waiting_for: str) -> RayL4Error:
    """The error of this project that a worker raised; anything else is named as what it is, with its place."""
    cause = error.cause
    if isinstance(cause, RayL4Error):
        return cause
    if isinstance(cause, RayTaskError):
        return _cause(cause, waiting_for)
    if isinstance(cause, RayError):
        return _of_ray(cause, waiting_for, "a peer it depends on")
    return PeerError(f"{waiting_for}: {type(cause).__name__}: {cause}\n{error}")


def _of_ray(error: RayError, waiting_for: str, who: str) -> PeerError:
    """What Ray itself says went wrong, not the worker."""
    if isinstance(error, OutOfMemoryError):
        return PeerLostError(
            f"{waiting_for}: {who} was ended because its machine ran out of memory ({_reason(error)}). Smaller "
            "micro-batches (students.micro_batch), more shards or another node per student take less; ray-l4 plan says "
            "how much."
        )
    if isinstance(error, _DEATHS):
        return PeerLostError(f"{waiting_for}: {who} died ({_reason(error)})")
    if isinstance(error, ObjectLostError):
        return PeerLostError(f"{waiting_for}: the node that held the answer is gone ({_reason(error)})")
    return PeerError(f"{waiting_for}: {type(error).__name__}: {_reason(error)}")


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
