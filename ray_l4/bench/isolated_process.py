"""An object in a process of its own, so that the memory of the process is the object's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ray_l4.errors import PeerError, RayL4Error


class Fresh:
    """Made there, asked from here. It ends with ``close``, or when this process ends in whatever way."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        """``make(*arguments)`` is called there; all of it has to be picklable. Raises what is raised there."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the object's method gives. Raises what it raises, PeerError if the process has died."""
        self._pipe.send((method, arguments))
        return self._answer()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _answer(self) -> Any:
        try:
            value, error = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise PeerError(
                f"the process that holds all students died (status {self._process.exitcode}); is there memory enough?"
            ) from None
        if error is not None:
            raise error
        return value


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Answer until nobody is there to ask."""
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
