"""The one place that knows which model is served now, and who uses which."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray_l4.serve.generator import not_running
from ray_l4.serve.limits import Limits
from ray_l4.serve.meter import Meter
from ray_l4.serve.problems import RequestError
from ray_l4.serve.served_model import ServedModel
from ray_l4.store.run_directory import RunDirectory

log = logging.getLogger("ray_l4.serve")


class Service:
    """What the routes serve. A request keeps the model that it begins with; a swap changes that of later ones."""

    def __init__(self, limits: Limits, meter: Meter, run: RunDirectory | None = None) -> None:
        """Begin without a model. ``run``: the run that is served; None for a checkpoint of no run."""
        self.limits, self.meter, self.run = limits, meter, run
        self._current: ServedModel | None = None
        self._lock = threading.Lock()

    @property
    def current(self) -> ServedModel | None:
        """The model that is served now; None if there is none yet. For its answers, use ``model()``."""
        return self._current

    @contextmanager
    def model(self) -> Iterator[ServedModel]:
        """Keep the model that is served now for the time of a request.

        Raises RequestError if there is none yet, or if its thread has ended.
        """
        with self._lock:
            model = self._current
            if model is None:
                message = "no stage of the run has finished yet, so there is no model; try again later"
                raise RequestError(503, message, "no_model_yet", retry_after=5)
            if not model.generator.is_alive():
                raise not_running()
            model.users += 1
        try:
            yield model
        finally:
            with self._lock:
                model.users -= 1
                unused = model is not self._current and not model.users
            if unused:
                model.close()

    def swap(self, new: ServedModel) -> None:
        """Serve ``new`` from now on. The old model ends when the requests that began with it have ended."""
        with self._lock:
            old, self._current = self._current, new
            unused = old is not None and not old.users
        if old is not None:
            self.meter.swaps.inc()
            if unused:
                old.close()
        place = new.checkpoint
        self.meter.stage.set(-1 if place is None else place.stage)
        self.meter.student.set(0 if place is None else place.student)
        log.info("serving %s of %s (tasks: %s)", new.fingerprint, new.name, ", ".join(new.tasks))

    def close(self) -> None:
        """End the thread of the model, for whose requests the server has waited."""
        if self._current is not None:
            self._current.close(self.limits.stop_seconds)
