"""The trackers themselves: Weights & Biases and MLflow, as writers of curves. A resumed run goes on in the same one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_l4.errors import ClusterError
from ray_l4.monitor.tracking import ScalarWriter
from ray_l4.store.atomic import write_text

_BATCH = 200
"""Points that MLflow gets at a time."""
_FLUSH_SECONDS = 5.0
"""Seconds after which a smaller batch is sent."""
_PARAMETER_LENGTH = 500
"""Characters of a parameter's value; MLflow refuses very long ones."""


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker shows it."""

    name: str
    project: str
    """Name of the experiment, which groups runs."""
    config: Mapping[str, Any]
    folder: Path
    """The run directory. It holds the tracker's id of the run, by which a resumed run is continued."""

    def known_id(self, tracker: str) -> str | None:
        """Return the id that the tracker gave the run earlier, if any."""
        path = self._file(tracker)
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def remember(self, tracker: str, run_id: str) -> None:
        """Keep the id that the tracker gave the run."""
        write_text(self._file(tracker), run_id + "\n")

    def _file(self, tracker: str) -> Path:
        return self.folder / f"{tracker}-run-id"


class WandbWriter:
    """A run of Weights & Biases. Raises ClusterError if it has no key: it would ask for one on the terminal."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        settings = wandb.Settings(silent=True, console="off", init_timeout=60)
        mode = wandb.setup(settings).settings.mode
        if mode == "online" and not wandb.api.api_key:
            raise ClusterError("no key of Weights & Biases; call `wandb login`, or set WANDB_MODE=offline")
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.known_id("wandb"),
            resume="allow",
            config=dict(run.config),
            dir=str(run.folder),
            reinit="create_new",
            settings=settings,
        )
        run.remember("wandb", self._run.id)
        # Scores arrive after later steps, so the step is an axis of its own: W&B's must not decrease.
        self._run.define_metric("train_step")
        self._run.define_metric("*", step_metric="train_step")

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self._run.log({tag: value, "train_step": step})

    def close(self) -> None:
        self._run.finish()


class MlflowWriter:
    """A run of MLflow, at ``MLFLOW_TRACKING_URI`` or in MLflow's default place."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        self._metric = Metric
        self._id = run.known_id("mlflow") or self._new(run)
        run.remember("mlflow", self._id)
        given = self._client.get_run(self._id).data.params
        params = [Param(key, value) for key, value in flattened(run.config) if key not in given]
        for start in range(0, len(params), 100):  # as many as a call may have
            self._client.log_batch(self._id, params=params[start : start + 100])
        self._batch: list[Any] = []
        self._sent = time.monotonic()

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        name = re.sub(r"[^\w\-. :/]", "_", tag, flags=re.ASCII)
        self._batch.append(self._metric(name, value, int(1000 * time.time()), step))
        if len(self._batch) >= _BATCH or time.monotonic() - self._sent > _FLUSH_SECONDS:
            self._send()

    def close(self) -> None:
        self._send()
        self._client.set_terminated(self._id)

    def _new(self, run: TrackedRun) -> str:
        found = self._client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else self._client.create_experiment(run.project)
        return str(self._client.create_run(experiment, run_name=run.name).info.run_id)

    def _send(self) -> None:
        if self._batch:
            self._client.log_batch(self._id, metrics=self._batch)
        self._batch, self._sent = [], time.monotonic()


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings as pairs of a dotted key and a text, for trackers that know no nested settings."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)[:_PARAMETER_LENGTH]


TRACKERS: Mapping[str, Callable[[TrackedRun], ScalarWriter]] = {"wandb": WandbWriter, "mlflow": MlflowWriter}
"""Name of a tracker -> its writer."""
