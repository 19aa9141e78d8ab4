"""Notices that the Ray session of this process has died, or that it hangs: a node manager or control store that is
stopped keeps its connections, so no call to it fails, and every call waits, whatever its time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ray_l4.cluster.connection import dead_process, own_node_is_alive
from ray_l4.errors import SessionLostError

_INTERVAL = 1.0
"""Seconds between two questions."""
_UNHEEDED = 5
"""Intervals after a loss within which somebody has to have asked for it."""
_GRACE = 2.0
"""Seconds for an answer after the limit was seen to be over: this process itself may have stood still until then."""


class SessionWatch:
    """Asks again and again whether this process's node belongs to a cluster that answers, on a thread of its own."""

    def __init__(
        self,
        limit: float,
        on_unheeded: Callable[[SessionLostError], None],
        is_alive: Callable[[], bool] = own_node_is_alive,
        dead: Callable[[], str | None] = dead_process,
        interval: float = _INTERVAL,
        grace: float = _GRACE,
    ) -> None:
        """Begin to ask.

        ``limit``: seconds without an answer after which the session is lost. ``on_unheeded`` is called on another
        thread if nobody calls ``loss`` then: whoever should is waiting for the session. ``is_alive`` asks the cluster
        and may wait; ``dead`` returns which process of a local one has died.
        """
        self._on_unheeded, self._heeded = on_unheeded, threading.Event()
        self._limit, self._interval, self._grace = limit, interval, grace
        self._is_alive, self._dead = is_alive, dead
        self._answered = time.monotonic()
        self._why = "it does not answer"
        self._node_is_gone = False
        self._died: str | None = None
        self._doubted: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="session watch", daemon=True)
        self._thread.start()
        threading.Thread(target=self._judge, name="session judge", daemon=True).start()

    def loss(self) -> SessionLostError | None:
        """Return the error if the session is lost."""
        loss = self._verdict()
        if loss is not None:
            self._heeded.set()
        return loss

    def _verdict(self) -> SessionLostError | None:
        if self._died is not None:
            return SessionLostError(f"ray: the {self._died} of this machine has died")
        if self._node_is_gone:
            return SessionLostError("ray: the node manager (raylet) of this machine is gone, or does not answer")
        now = time.monotonic()
        silence = now - self._answered
        if silence <= self._limit:
            self._doubted = None
            return None
        doubted = self._doubted  # read once: another thread may be here, too
        self._doubted = doubted = now if doubted is None else doubted
        if now - doubted < self._grace:
            return None
        return SessionLostError(
            f"ray: no answer from the cluster's control store (GCS) for {silence:.0f} s (timeouts.control): {self._why}"
        )

    def _judge(self) -> None:
        while not self._closed.wait(self._interval):
            self._died = self._dead()
            loss = self._verdict()
            if loss is not None:
                if not self._heeded.wait(_UNHEEDED * self._interval) and not self._closed.is_set():
                    self._on_unheeded(loss)
                return

    def close(self) -> None:
        """Ask no more. Ray may be shut down now: a question would start it anew."""
        self._closed.set()
        self._thread.join(self._interval)

    def _ask(self) -> None:
        while not self._node_is_gone and not self._closed.wait(self._interval):
            try:
                self._node_is_gone = not self._is_alive()
                self._answered = time.monotonic()
            except SessionLostError as error:  # it may come back
                self._why = str(error)
