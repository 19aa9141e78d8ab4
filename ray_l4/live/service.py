"""``ray-l4 live``: serve a run, and learn what its users correct, in one service."""

from __future__ import annotations

from collections.abc import Callable

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import LiveConfig
from ray_l4.errors import ConfigError
from ray_l4.live.learner import LiveLearner, learning
from ray_l4.methods import get_method
from ray_l4.serve.opening import ServeOptions
from ray_l4.store.lock import LOCK, locked
from ray_l4.store.run_directory import RunDirectory

_LOCK = f"{LOCK}.live"


def live(
    options: ServeOptions, replicas: int, cluster: ClusterConfig, settings: LiveConfig, say: Callable[[str], None]
) -> None:
    """Serve and learn until a signal arrives; it leaves as KeyboardInterrupt.

    ``replicas``: copies of the model that answer; one needs no Ray. ``cluster``: where students learn. Raises
    ConfigError if the method of the run cannot learn further tasks, RunDirectoryError if another service learns in it,
    and errors as ``serve``.
    """
    run = options.run
    if run is None:
        raise ConfigError(
            f"{options.folder} is a checkpoint, which cannot learn further tasks. Give its run directory."
        )
    _refuse_method(run)
    with locked(run.path, _LOCK):
        learner = LiveLearner(run, cluster, settings, say)
        learner.judge()  # before anything is answered: every answer is then of a stage that was promoted
        beside = learning(learner)
        if replicas == 1:
            from ray_l4.serve.one_process import serve

            serve(options, say, beside)
        else:
            from ray_l4.serve.replicas import serve as serve_on_ray

            serve_on_ray(options, cluster, replicas, say, beside)


def _refuse_method(run: RunDirectory) -> None:
    method = get_method(run.experiment().method)
    if not method.kind.ordered:
        raise ConfigError(
            f"{run.path}: a run of {method.name} does not learn one task after another in one model, so there is "
            "nothing that a live service could go on with. Begin a run of another method, such as l4."
        )
