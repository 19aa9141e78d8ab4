"""An object in a process of its own, so that the memory of the process is the memory of the object."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ray_l4.errors import PeerError, RayL4Error


class IsolatedProcess:
    """A process that holds one object and runs its methods. It ends with ``close``, or when this process ends."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        """Start the process and let it make the object by ``make(*arguments)``; both must be picklable.

        Raises the RayL4Error that ``make`` raises, PeerError if the process dies.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, make, arguments), daemon=True)
        self._process.start()
        far_end.close()  # so that the pipe closes when the process ends
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object and return its result.

        Raises the RayL4Error that the method raises, PeerError if the process has died.
        """
        self._pipe.send((method, arguments))
        return self._receive()

    def close(self) -> None:
        """Kill the process and wait for its end."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _receive(self) -> Any:
        try:
            value, error = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise PeerError(
                f"the process that holds all students died (status {self._process.exitcode}); is there enough memory?"
            ) from None
        if error is not None:
            raise error
        return value


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Make the object and answer calls until the pipe is closed."""
    try:
        served = make(*arguments)
        pipe.send((None, None))
    except RayL4Error as error:
        pipe.send((None, error))
        return
    while True:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((getattr(served, method)(*given), None))
        except RayL4Error as error:
            pipe.send((None, error))
