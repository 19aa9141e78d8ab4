"""Trials on Ray Tune: it starts each one when the cluster has room for it, and lets others go on when one fails.

Tune schedules and nothing else. What a trial has done stands in its run directory, from which a later call goes on.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from typing import Any

# Tune reads these when it is imported or starts: no files beside its own, no printing, Ctrl-C as everywhere else, the
# working directory of the command, and few trials that wait for room at once, so that they start in their order.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "4")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

from ray import tune

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import RayL4Error
from ray_l4.sweep.folder import SweepFolder
from ray_l4.sweep.run_trial import needs, run_trial
from ray_l4.sweep.trials import Trial
from ray_l4.sweep.view import SweepView

_TRIAL = "trial"
"""The one parameter of a Tune trial: the folder of ours."""


def run_on_tune(
    pending: Mapping[str, Trial], folder: SweepFolder, cluster: ClusterConfig, command: str, view: SweepView
) -> dict[str, str]:
    """Run all ``pending`` trials on the Ray that is connected. Gives the message of each that failed, by its folder."""

    def learn(config: Mapping[str, str], shared: Mapping[str, Any]) -> None:
        trial = shared["trials"][config[_TRIAL]]
        run_trial(trial, shared["folder"], shared["cluster"], shared["command"])
        tune.report({"run": trial.folder})

    def places(config: Mapping[str, str]) -> tune.PlacementGroupFactory:
        wanted = needs(pending[config[_TRIAL]], cluster)
        # Without Ray the trial's own process does the work; with it, students take the places, in their order.
        own_process: list[dict[str, float]] = [] if cluster.exchange.transport == "in_process" else [{}]
        return tune.PlacementGroupFactory([*own_process, *wanted], strategy=cluster.placement.strategy)

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failing trial's traceback stands in its log
    shared = {"trials": dict(pending), "folder": folder, "cluster": cluster, "command": command}
    shutil.rmtree(folder.scratch, ignore_errors=True)
    try:
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(learn, shared=shared), places),
            param_space={_TRIAL: tune.grid_search(list(pending))},
            tune_config=tune.TuneConfig(reuse_actors=False),
            run_config=tune.RunConfig(
                name="trials", storage_path=str(folder.scratch), verbose=0, callbacks=[_Watch(view)]
            ),
        ).fit()
    finally:
        shutil.rmtree(folder.scratch, ignore_errors=True)
    return {result.config[_TRIAL]: _message(result.error) for result in results if result.error is not None}


class _Watch(tune.Callback):
    """Tells the view what Tune says of its trials."""

    def __init__(self, view: SweepView) -> None:
        self._view = view

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune saves its callbacks for a restart of its own, which a sweep does without."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._view.started(trial.config[_TRIAL])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._view.ended(trial.config[_TRIAL], failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._view.ended(trial.config[_TRIAL], failed=True)


def _message(error: BaseException) -> str:
    """What ended a trial: our own words for what a user can mend, else the kind of error too."""
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip().partition("\n")[0]
    return str(cause) if isinstance(cause, RayL4Error) else f"{type(cause).__name__}: {text}"
