"""Scheduling of trials by Ray Tune, which starts each one when the cluster has room and continues when one fails.

Tune does nothing but schedule. The progress of a trial is in its run directory, from which a later call resumes it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from typing import Any

# Tune reads these on import or at the start: write no extra log files, print nothing, leave Ctrl-C and the working
# directory alone, and let few trials wait for resources at once, so that they start in order.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "4")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

from ray import tune

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import RayL4Error
from ray_l4.sweep.directory import SweepDirectory
from ray_l4.sweep.room_check import trial_bundles
from ray_l4.sweep.run_trial import run_trial
from ray_l4.sweep.trials import Trial
from ray_l4.sweep.view import SweepView

_TRIAL = "trial"
"""The only parameter of a Tune trial: the name of our trial."""


def run_on_tune(
    pending: Mapping[str, Trial], directory: SweepDirectory, cluster: ClusterConfig, command: str, view: SweepView
) -> dict[str, str]:
    """Run the ``pending`` trials on the connected Ray cluster; return the message of each that failed, by name."""

    def learn(config: Mapping[str, str], shared: Mapping[str, Any]) -> None:
        trial = shared["trials"][config[_TRIAL]]
        run_trial(trial, shared["directory"], shared["cluster"], shared["command"])
        tune.report({"run": trial.name})

    def reservation(config: Mapping[str, str]) -> tune.PlacementGroupFactory:
        bundles = trial_bundles(pending[config[_TRIAL]], cluster)
        # Without Ray, the trial's own process does the work. With Ray, the workers take the bundles in this order.
        own_process: list[dict[str, float]] = [] if cluster.in_one_process else [{}]
        return tune.PlacementGroupFactory([*own_process, *bundles], strategy=cluster.placement.strategy)

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the trial's log has the traceback of a failure
    shared = {"trials": dict(pending), "directory": directory, "cluster": cluster, "command": command}
    shutil.rmtree(directory.tune_path, ignore_errors=True)
    try:
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(learn, shared=shared), reservation),
            param_space={_TRIAL: tune.grid_search(list(pending))},
            tune_config=tune.TuneConfig(reuse_actors=False),
            run_config=tune.RunConfig(
                name="trials", storage_path=str(directory.tune_path), verbose=0, callbacks=[_ViewCallback(view)]
            ),
        ).fit()
    finally:
        shutil.rmtree(directory.tune_path, ignore_errors=True)
    return {result.config[_TRIAL]: _message(result.error) for result in results if result.error is not None}


class _ViewCallback(tune.Callback):
    """Forwards the start and end of trials from Tune to the view."""

    def __init__(self, view: SweepView) -> None:
        self._view = view

    def __getstate__(self) -> dict[str, object]:
        """Return no state: Tune saves its callbacks for its own restarts, which a sweep does not use."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._view.trial_started(trial.config[_TRIAL])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._view.trial_ended(trial.config[_TRIAL], failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._view.trial_ended(trial.config[_TRIAL], failed=True)


def _message(error: BaseException) -> str:
    """Return the message of the error that ended a trial; its class and first line if it is not a RayL4Error."""
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip().partition("\n")[0]
    return str(cause) if isinstance(cause, RayL4Error) else f"{type(cause).__name__}: {text}"
