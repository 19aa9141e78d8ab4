"""Several nodes: processes land where the profile says, and only ``storage_path`` outlives the run's own node."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from ray_l4.cluster.placement import check_room
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError
from ray_l4.run.session import start
from ray_l4.setup.setup import prepare
from ray_l4.store.mirror import Mirror
from ray_l4.store.run_directory import RunDirectory
from tests.cli.cli_fixtures import ray_l4, refused, write_experiment
from tests.run import run_fixtures as small

pytestmark = pytest.mark.ray

NODES = {
    "head": {"num_cpus": 1},
    "scorer": {"num_cpus": 1, "resources": {"scoring": 1}},
    "gpus": {"num_cpus": 1, "num_gpus": 2},
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, str]]:
    """The name of each node by Ray's id of it."""
    with small.pretended_nodes() as cluster:
        names = {cluster.add_node(include_dashboard=False, **node).node_id: name for name, node in NODES.items()}
        small.join_nodes(cluster)
        yield names


def profile(**changes: Any) -> ClusterConfig:
    """Every student on a node of its own, evaluators where scoring is done."""
    spread: dict[str, Any] = {
        "students": {"cpus": 1},
        "evaluators": {"cpus": 1, "resources": {"scoring": 1}},
        "placement": {"strategy": "STRICT_SPREAD"},
    }
    return small.cluster("object_store", **spread | changes)


def where(nodes: dict[str, str]) -> dict[str, list[str]]:
    """The nodes of the living actors, by the name of their class."""
    found: dict[str, list[str]] = {}
    for actor in ray._private.state.actors().values():
        if actor["State"] == "ALIVE":
            found.setdefault(actor["ActorClassName"], []).append(nodes[actor["Address"]["NodeID"]])
    return {kind: sorted(names) for kind, names in found.items()}


def test_a_run_on_several_nodes_goes_on_from_its_copy(
    nodes: dict[str, str], finished: Callable[[str], small.Finished], tmp_path: Path
) -> None:
    """It is stopped in its second stage; then the disk of its node is lost."""
    storage = tmp_path / "storage"
    storage.mkdir()
    mirrored = profile(storage_path=str(storage))
    setup, run = small.new_run(small.quick("l4"), mirrored, tmp_path / "node" / "run")
    session = start(setup, mirrored, run)
    while run.state().stages_done == 0:
        assert not session.wait(0.05), session.result()
    while "Evaluator" not in (places := where(nodes)):
        assert not session.wait(0.05), session.result()
    session.close()
    assert places == {"CoordinatorActor": ["head"], "Student": ["gpus", "head"], "Evaluator": ["scorer"]}
    assert not (run.path / "summary.json").exists()

    shutil.rmtree(run.path.parent)
    again = RunDirectory(tmp_path / "another node" / "run")
    Mirror.at(str(storage / "run")).pull(again.path)
    assert again.state().stages_done == 1
    assert again.cluster() == mirrored
    alone = small.cluster("in_process", storage_path=str(storage))
    summary = small.finish(start(prepare(again.experiment()), alone, again))

    expected, of_expected = finished("l4")
    small.assert_equal(again, expected)
    assert summary["score_matrix"] == of_expected["score_matrix"]
    small.assert_equal(RunDirectory.open(storage / "run"), expected)


def fits(bundles: list[dict[str, float]], seconds: float) -> bool:
    """Whether Ray finds room in time."""
    group = placement_group(bundles)
    try:
        return bool(group.wait(seconds))
    finally:
        remove_placement_group(group)


@pytest.mark.parametrize(
    ("students", "share", "evaluators", "other"), [(2, 0.7, 1, 0.6), (2, 0.4, 2, 0.6), (2, 0.6, 2, 0.4), (2, 0.5, 1, 1)]
)
def test_the_check_says_what_ray_does(
    nodes: dict[str, str], students: int, share: float, evaluators: int, other: float
) -> None:
    """One node has two GPUs. Students and evaluators together ask for two at most."""
    cluster = ClusterConfig.model_validate(
        {"students": {"cpus": 0, "gpus": share}, "evaluators": {"count": evaluators, "gpus": other}}
    )
    asked = [{"GPU": share}] * students + [{"GPU": other}] * evaluators
    try:
        expected = [list(nodes.values())[n] for n in check_room(students, cluster, ordered(nodes))]
    except ClusterError as error:
        assert "enough in total" in str(error)
        assert not fits(asked, 1.5)
    else:
        assert expected == ["gpus"] * len(asked)
        assert fits(asked, 60)


def ordered(nodes: dict[str, str]) -> list[dict[str, float]]:
    """What Ray says of the nodes, in their order here."""
    found = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    return [found[node] for node in nodes]


def test_a_command_runs_on_a_cluster_that_is_there_and_leaves_it_as_it_was(
    nodes: dict[str, str], tmp_path: Path
) -> None:
    address = f"cluster.ray.address={ray.get_runtime_context().gcs_address}"
    result = ray_l4("run", write_experiment(tmp_path), "--set", address, "--run-dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert RunDirectory.open(tmp_path / "run").summary()["method"] == "l4"
    assert fits([{"CPU": 1}] * 3, 60), "what it reserved is given back"


def test_a_cluster_that_is_too_small_is_refused_before_the_data_is_read(nodes: dict[str, str], tmp_path: Path) -> None:
    """By a command that joins it for that. What to learn could not even be read; nothing is left behind."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("this is not JSON\n")
    experiment = write_experiment(tmp_path, stream=[{"name": "own", "path": str(tmp_path), "metric": "em"}])
    address = f"cluster.ray.address={ray.get_runtime_context().gcs_address}"
    result = ray_l4(
        "run", experiment, "--set", address, "--set", "cluster.students.gpus=2", "--run-dir", tmp_path / "run"
    )
    refused(result, 6, "2 students with 1 CPU and 2 GPU each", "asks for 4 GPU", "there are 2. There are 3 nodes")
    assert not (tmp_path / "run").exists()


def test_a_node_that_is_missing_is_said_at_once(nodes: dict[str, str], tmp_path: Path) -> None:
    wanting = profile(evaluators={"count": 2, "cpus": 1, "resources": {"scoring": 1}})
    setup, run = small.new_run(small.quick("l4"), wanting, tmp_path / "run")
    began = time.monotonic()
    with pytest.raises(
        ClusterError, match=r"asks for 2 scoring \(2 evaluators with 1 scoring each\), there are 1\. There are 3 nodes"
    ):
        start(setup, wanting, run)
    assert time.monotonic() - began < 5
