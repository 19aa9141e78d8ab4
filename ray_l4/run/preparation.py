"""Prepares a run for its start: checks, data and tokeniser, and what its manifest says about them."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

from ray_l4.cluster.connection import Connection, check_cluster
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import RunDirectoryError
from ray_l4.methods import extended, graph_of, stages_of
from ray_l4.run.going_back import first_stage
from ray_l4.run.peer_teachers import peer_entries, refuse_other_peers
from ray_l4.run.teachers import named_teachers
from ray_l4.setup.begun import Begun, Texts, begun, begun_with_peers, record_examples, record_general
from ray_l4.setup.early_check import check_raw_data, check_settings
from ray_l4.setup.exchange_check import check_exchange
from ray_l4.setup.facts import facts_as_json
from ray_l4.setup.own_batches import as_begun
from ray_l4.setup.rank_check import check_ranks
from ray_l4.setup.setup import Setup, prepared
from ray_l4.store.begun_with import VERSIONS_KEY, begun_versions, changed_versions, check_experiment, recorded
from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.tokenizer import TaskTokenizer

_EXTENSIONS_KEY = "extensions"
"""Manifest key of the commands that extended a run, with the items of the stream that each of them added."""
_LIBRARIES = ("ray-l4", "torch", "ray", "transformers", "tokenizers", "pyarrow", "rouge-score")


@dataclass(frozen=True)
class Prepared:
    """What a run needs before it can start."""

    setup: Setup
    texts: Texts
    connection: Connection | None
    """To a cluster that starts on this machine, if it is one."""


def prepare_run(
    experiment: ExperimentConfig,
    cluster: ClusterConfig,
    held: ExitStack | None,
    lost: Collection[int] = (),
    known: Begun | None = None,
) -> Prepared:
    """Check that the cluster has room for all workers except ``lost`` students, then prepare the data they share.

    A cluster on this machine starts while the data is tokenised; its connection is closed with ``held``; None: it does
    not start. An error in the data shows before, without a wait for Ray. ``known``: what a run that goes on has.
    """
    known = begun_with_peers(experiment, known)
    learned = 0 if known is None else _num_learned(experiment, known.first)
    check_settings(experiment, cluster, learned, keeps_general=known is not None and known.general is not None)
    check_raw_data(experiment, learned)
    students = len(graph_of(experiment).without(lost).present)
    check_cluster(students, cluster)
    if cluster.in_one_process or cluster.ray.address is not None or held is None:
        connection = None
        setup, texts = prepared(experiment, begun=known)
    else:
        connection = Connection(students, cluster)
        held.callback(connection.close)
        setup, texts = prepared(experiment, connection.begin, known)
    check_ranks(setup, cluster)
    check_exchange(setup.experiment, cluster)  # again: some settings are decided only now
    if known is not None and setup.method.has_peer_teachers:
        refuse_other_data(known, setup, experiment.teachers.run)
    named_teachers(setup)  # raises if they do not fit, before anything is created
    return Prepared(setup, texts, connection)


def prepare_again(
    directory: RunDirectory,
    cluster: ClusterConfig,
    held: ExitStack | None,
    say: Callable[[str], None],
    items: Sequence[TaskConfig] = (),
) -> Prepared:
    """Prepare a run that goes on, as ``prepare_run``, with further ``items`` at the end of its stream.

    ``say`` is given warnings. Raises RunDirectoryError if experiment or data are not those with which the run began.
    """
    experiment = directory.experiment()
    check_experiment(directory.path / "config.yaml", experiment, directory.manifest())
    experiment = as_begun(extended(experiment, items) if items else experiment)
    known = begun(directory, first_stage(directory, experiment))
    ready = prepare_run(experiment, cluster, held, directory.state().lost_students, known)
    refuse_other_data(known, ready.setup, directory.path)
    refuse_other_peers(directory.manifest(), experiment)
    changed = changed_versions(begun_versions(directory), {"python": _python(), **_versions()})
    if changed:
        say(
            f"warning: the run began with other versions: {'; '.join(changed)}. Its results may differ from those "
            "of a run that was not interrupted."
        )
    return ready


def refuse_other_data(known: Begun, setup: Setup, run: Path | None) -> None:
    """Raise RunDirectoryError if data is not that with which a ``run``, of which ``known`` is known, began."""
    for item in known.facts.keys() & setup.facts.keys():
        if setup.facts[item].fingerprint != known.facts[item].fingerprint:
            raise RunDirectoryError(
                f"{run}: the data of {item} or the tokeniser has changed since the run began, so its scores "
                "would not be comparable. Restore the old data, or start a new run."
            )


def _num_learned(experiment: ExperimentConfig, first: int) -> int:
    """Return the number of items, from the start of the stream, that no stage from ``first`` on learns."""
    left = {item for stage in stages_of(experiment)[first:] for item in stage.items}
    return sum(1 for _ in takewhile(lambda item: item not in left, experiment.items))


def lacks_tokens(directory: RunDirectory, items: Sequence[TaskConfig]) -> bool:
    """Return whether further ``items`` need more task tokens than a run has to spare."""
    experiment, folder = directory.experiment(), directory.path / "tokenizer"
    if experiment.model.task_tokens == "shared" or not folder.is_dir():
        return False
    new = {item.name for item in items} - set(experiment.tasks)
    return len(new) > len(TaskTokenizer.load(folder).spares)


def are_to_come(directory: RunDirectory, items: Sequence[TaskConfig]) -> bool:
    """Return whether a run ends with these ``items`` and has learned none of them: it was extended by them before."""
    stream = directory.experiment().stream
    last = stream[len(stream) - len(items) :]
    asked, there = ([(own.name, own.path, own.dataset, own.settings) for own in each] for each in (items, last))
    return asked == there and directory.state().stages_done <= len(stream) - len(items)


def extensions(directory: RunDirectory, command: str, items: Sequence[str]) -> dict[str, object]:
    """Return the entry of a manifest that lists the commands that extended a run, the newest one included."""
    newest = {"command": command, "started": now(), "items": list(items)}
    return {_EXTENSIONS_KEY: [*directory.manifest().get(_EXTENSIONS_KEY, []), newest]}


def keep_examples(directory: RunDirectory, ready: Prepared) -> None:
    """Write the examples to the run directory that a run which goes on needs, when the data may be gone."""
    setup = ready.setup
    stored = {item: setup.stored_part(item) for item in setup.training} if setup.method.stores_examples else {}
    record_examples(directory, ready.texts, stored)
    record_general(directory, setup.general)


def manifest_of(command: str, setup: Setup) -> dict[str, object]:
    return {
        "command": command,
        "started": now(),
        "python": _python(),
        "platform": platform.platform(),
        VERSIONS_KEY: _versions(),
        **data_entries(setup),
        **peer_entries(setup.experiment),
        **recorded(setup.experiment),
    }


def data_entries(setup: Setup) -> dict[str, object]:
    """Return the entries of a manifest about the data and the tokeniser."""
    return {
        **facts_as_json(setup.facts),
        "test_examples": {task: len(tests.items) for task, tests in setup.tests.items()},
        "vocabulary": setup.tokenizer.size,
    }


def now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def _python() -> str:
    return sys.version.split()[0]


def _versions() -> dict[str, str]:
    return {library: version(library) for library in _LIBRARIES}
