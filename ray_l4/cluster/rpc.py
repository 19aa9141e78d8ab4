"""RPC: calls to workers, with and without Ray.

A call returns a reference at once. A reference can be passed to another call as an argument: its value then goes from
worker to worker without passing through the caller, and if it failed, the other call fails with the same cause.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from ray_l4.cluster.pulses import Pulses
from ray_l4.cluster.temporary_folder import full_temporary_folder
from ray_l4.errors import DependencyLostError, PeerError, PeerLostError, RayL4Error, RunDirectoryError
from ray_l4.store.full_disk import full_disk_message, is_full_disk
from ray_l4.workers.out_of_memory import is_out_of_memory, out_of_memory

T = TypeVar("T")
U = TypeVar("U")
T_co = TypeVar("T_co", covariant=True)

_COLOURS = re.compile(r"\x1b\[[\d;]*m")

_DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError)


class Ref(Generic[T_co]):
    """A reference to a value that may not have arrived yet. Only the RPC that made it can read it."""


PerRank = Sequence[Ref[T]]
"""References to the results of one call to a student, one for each of its ranks. The value is that of the first rank;
the others show whether their ranks failed."""


class Rpc(Protocol):
    """Calls to workers. A worker is an object of this process, or a Ray actor."""

    def call(self, worker: Any, method: Callable[..., T], *arguments: Any) -> Ref[T]:
        """Call ``method``, a function of the worker's class, on the worker. A worker serves its calls in order."""

    def call_for_two(self, worker: Any, method: Callable[..., tuple[T, U]], *arguments: Any) -> tuple[Ref[T], Ref[U]]:
        """Do the same with a method that returns two values (``workers.calls.returning``)."""

    def put(self, value: T) -> Ref[T]:
        """Store a value once for all its readers."""

    def get_all(self, references: Mapping[str, Sequence[Ref[T]]], timeout: float) -> dict[str, list[T]]:
        """Wait up to ``timeout`` seconds in total for all ``references``, and return their values by the same keys.

        A key names the worker and the call in messages. Raises as soon as one reference has failed: PeerLostError if
        its worker died, hangs or did not answer in time, or if one hangs for which it may wait; the call's own error if
        that is a RayL4Error; otherwise PeerError with the class of the error.
        """

    def ready(self, references: Sequence[Ref[Any]]) -> list[Ref[Any]]:
        """Return the references whose value or error has arrived, without waiting."""

    def silence(self, worker: Any) -> str | None:
        """Return how a worker came to a stop although its process exists; None if it is alive as far as known."""

    def end(self, worker: Any) -> None:
        """End a worker that is no longer needed."""


def get(rpc: Rpc, reference: Ref[T], timeout: float, waiting_for: str) -> T:
    """Return the value of one reference; see ``Rpc.get_all``."""
    return rpc.get_all({waiting_for: [reference]}, timeout)[waiting_for][0]


def get_first(rpc: Rpc, references: PerRank[T], timeout: float, waiting_for: str) -> T:
    """Wait for all ranks of a student and return the value of the first; see ``Rpc.get_all``."""
    return rpc.get_all({waiting_for: references}, timeout)[waiting_for][0]


@dataclass(frozen=True, eq=False)
class _Result(Ref[T]):
    """A reference within one process: the value itself, or the error that the call raised."""

    value: T | None = None
    error: RayL4Error | None = None


class LocalRpc:
    """All workers are objects of this process, and calls run at once: the reference for every other RPC."""

    def call(self, worker: Any, method: Callable[..., T], *arguments: Any) -> Ref[T]:
        failed = [a.error for a in arguments if isinstance(a, _Result) and a.error is not None]
        if failed:
            return _Result(error=failed[0])
        values = [a.value if isinstance(a, _Result) else a for a in arguments]
        try:
            return _Result(getattr(worker, method.__name__)(*values))
        except RayL4Error as error:
            return _Result(error=error)
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            failure = out_of_memory(worker, error)
            failure.__cause__ = error
            return _Result(error=failure)

    def call_for_two(self, worker: Any, method: Callable[..., tuple[T, U]], *arguments: Any) -> tuple[Ref[T], Ref[U]]:
        both = cast(_Result[tuple[T, U]], self.call(worker, method, *arguments))
        if both.value is None:
            return _Result(error=both.error), _Result(error=both.error)
        return _Result(both.value[0]), _Result(both.value[1])

    def put(self, value: T) -> Ref[T]:
        return _Result(value)

    def get_all(self, references: Mapping[str, Sequence[Any]], timeout: float) -> dict[str, list[Any]]:
        for error in (own.error for owns in references.values() for own in owns):
            if error is not None:
                raise error
        return {who: [own.value for own in owns] for who, owns in references.items()}

    def ready(self, references: Sequence[Ref[Any]]) -> list[Ref[Any]]:
        return list(references)

    def silence(self, worker: Any) -> str | None:
        return None

    def end(self, worker: Any) -> None:
        """Do nothing: the worker is an ordinary object."""


class RayRpc:
    """Workers are Ray actors, and values travel through the object store (REFERENCE.md#ray)."""

    def __init__(self) -> None:
        self.pulses = Pulses()

    def call(self, worker: Any, method: Callable[..., T], *arguments: Any) -> Ref[T]:
        return cast(Ref[T], getattr(worker, method.__name__).remote(*arguments))

    def call_for_two(self, worker: Any, method: Callable[..., tuple[T, U]], *arguments: Any) -> tuple[Ref[T], Ref[U]]:
        first, second = getattr(worker, method.__name__).remote(*arguments)
        return first, second

    def put(self, value: T) -> Ref[T]:
        return cast(Ref[T], ray.put(value))

    def get_all(self, references: Mapping[str, Sequence[Any]], timeout: float) -> dict[str, list[Any]]:
        everything = [own for owns in references.values() for own in owns]
        try:
            values = iter(self._get(everything, timeout))
        except GetTimeoutError:
            late = {who: owns for who, owns in references.items() if len(self.ready(owns)) < len(owns)} or references
            silent = self.pulses.silent(everything)
            if silent is not None:
                raise PeerLostError(f"{silent}; awaited: {'; '.join(late)}") from None
            raise PeerLostError(
                f"{', '.join(late)}: no answer within {timeout:g} s (timeouts in the cluster profile)"
                + self.pulses.last_spans(own for owns in late.values() for own in owns)
            ) from None
        except RayError as error:
            who, cause, failed = self._first_failure(references) or (", ".join(references), error, [])
            raise _translated(cause, who, self.pulses.last_spans(failed)) from cause
        return {who: [next(values) for _ in owns] for who, owns in references.items()}

    def ready(self, references: Sequence[Any]) -> list[Any]:
        if not references:
            return []
        done, _ = ray.wait(list(references), num_returns=len(references), timeout=0, fetch_local=False)
        return done

    def silence(self, worker: Any) -> str | None:
        return self.pulses.silence(worker)

    def end(self, worker: Any) -> None:
        ray.kill(worker)
        self.pulses.forget(worker)

    def _get(self, references: Sequence[Any], timeout: float) -> Sequence[Any]:
        """Return the values of ``references``. Raises GetTimeoutError if they are late, or if a worker hangs."""
        deadline = time.monotonic() + timeout
        interval = self.pulses.interval(references)
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            try:
                values: Sequence[Any] = ray.get(references, timeout=min(left, interval))
                return values
            except GetTimeoutError:
                if left <= interval or self.pulses.silent(references) is not None:
                    raise

    def _first_failure(self, references: Mapping[str, Sequence[Any]]) -> tuple[str, RayError, list[Any]] | None:
        """Return whose reference holds an error, the error and the reference; None if that is no longer known.

        The death of a worker comes before the errors of calls that depended on it.
        """
        failures: list[tuple[str, RayError, list[Any]]] = []
        for who, owns in references.items():
            for reference in self.ready(owns):
                try:
                    ray.get(reference, timeout=0)
                except GetTimeoutError:
                    continue  # the value exists, but on another node
                except RayError as error:
                    failures.append((who, error, [reference]))
        return min(failures, key=lambda failure: isinstance(failure[1], RayTaskError), default=None)


def _translated(error: RayError, waiting_for: str, last_span: str = "") -> RayL4Error:
    """Convert an error that Ray raised into one of this project. ``last_span`` ends the message of a death."""
    if isinstance(error, RayTaskError):  # tested first, since it is also an instance of its cause's class
        return _cause(error, waiting_for)
    found = _of_ray(error, waiting_for, "its process")
    return PeerLostError(f"{found}{last_span}") if isinstance(found, PeerLostError) else found


def _cause(error: RayTaskError, waiting_for: str) -> RayL4Error:
    """Return the error of this project that a worker raised, or a PeerError that names the class of any other error."""
    cause = error.cause
    if isinstance(cause, RayL4Error):
        return cause
    if isinstance(cause, RayTaskError):
        return _cause(cause, waiting_for)
    if isinstance(cause, RayError):
        return _dependency(_of_ray(cause, waiting_for, "a peer it depends on"))
    if is_full_disk(cause):
        path = getattr(cause, "filename", None)
        return RunDirectoryError(f"{waiting_for}: {full_disk_message(path, cause, is_here=False)}")
    return PeerError(f"{waiting_for}: {type(cause).__name__}: {_reason(cause)} (--debug prints the worker's traceback)")


def _dependency(error: PeerError) -> PeerError:
    return DependencyLostError(str(error)) if isinstance(error, PeerLostError) else error


def _of_ray(error: RayError, waiting_for: str, who: str) -> PeerError:
    """Convert an error of Ray itself, rather than of the worker, into one of this project."""
    if isinstance(error, OutOfMemoryError):
        return PeerLostError(
            f"{waiting_for}: {who} was killed because its machine ran out of memory ({_reason(error)}). Use smaller "
            "micro-batches (students.micro_batch), more ranks (students.shards_per_student) or a node for each "
            "student; ray-l4 plan shows how much memory they take."
        )
    if isinstance(error, OutOfDiskError):
        return PeerError(f"{waiting_for}: {full_temporary_folder()} ({_reason(error)})")
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return PeerError(f"{waiting_for}: {who} could not start: {_creation_error(error)}")
    if isinstance(error, _DEATHS):
        return PeerLostError(f"{waiting_for}: {who} died ({_reason(error)})")
    if isinstance(error, ObjectLostError):
        return PeerLostError(f"{waiting_for}: the node that held the answer is gone ({_reason(error)})")
    return PeerError(f"{waiting_for}: {type(error).__name__}: {_reason(error)}")


def _creation_error(error: RayActorError) -> str:
    """Return class and message of the error that an actor's constructor raised.

    Ray keeps no more of it than the text of its traceback: the error follows the last line of code.
    """
    lines = _plain(error).strip().splitlines()
    places = [index for index, line in enumerate(lines) if line.startswith("  File ")]
    after = lines[places[-1] + 1 :] if places else lines
    start = next((index for index, line in enumerate(after) if not line.startswith(" ")), 0)
    return " ".join(line.strip() for line in after[start:])


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in _plain(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _plain(error: Exception) -> str:
    """Return the text of an error without the colours of a terminal."""
    return _COLOURS.sub("", str(error))
