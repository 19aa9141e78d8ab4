"""Every profile fits the machines it is written for, and no smaller ones."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from ray_l4.cluster.placement import check_room
from ray_l4.config.loading import load_cluster
from ray_l4.errors import ClusterError
from tests.launch.launch_fixtures import REPOSITORY

PROFILES = {path.stem: load_cluster(path) for path in sorted((REPOSITORY / "cluster_configs").glob("*.yaml"))}
CLUSTERS = (REPOSITORY / "docs" / "CLUSTERS.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Machines:
    """The machines that a profile is written for, and the node of each worker."""

    peers: int
    nodes: tuple[dict[str, float], ...]
    places: list[int]
    scarce: str
    """The resource of which no node can spare one."""


GPU_NODE = {"CPU": 4.0, "GPU": 1.0}
CPU_NODE = {"CPU": 8.0, "cpu_node": 4.0}

MACHINES = {
    "in_process": Machines(2, ({"CPU": 2.0},), [0, 0], "CPU"),
    "laptop": Machines(2, ({"CPU": 2.0},), [0, 0], "CPU"),
    "one_gpu": Machines(2, ({"CPU": 4.0, "GPU": 1.0},), [0, 0, 0], "GPU"),
    "two_gpus": Machines(2, ({"CPU": 8.0, "GPU": 2.0},), [0] * 4, "GPU"),
    "four_gpus": Machines(4, ({"CPU": 16.0, "GPU": 4.0},), [0] * 8, "GPU"),
    "two_by_four": Machines(2, ({"CPU": 32.0, "GPU": 8.0},), [0] * 10, "GPU"),
    "several_nodes": Machines(2, (GPU_NODE, GPU_NODE), [0, 1, 0, 1], "GPU"),
    "several_nodes_object_storage": Machines(2, (GPU_NODE, GPU_NODE), [0, 1, 0, 1], "GPU"),
    "cpu_evaluators": Machines(2, (CPU_NODE, GPU_NODE, GPU_NODE, CPU_NODE), [1, 2, 0, 3], "GPU"),
}


@pytest.fixture(params=PROFILES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_students_and_evaluators_go_to_the_intended_nodes(name: str) -> None:
    machines = MACHINES[name]  # KeyError: add the machines of a new profile above
    assert check_room(machines.peers, PROFILES[name], machines.nodes) == machines.places


def test_smaller_machines_have_no_room(name: str) -> None:
    machines = MACHINES[name]
    for short in (node for node in machines.nodes if node.get(machines.scarce)):
        fewer = [
            node | {machines.scarce: node[machines.scarce] - 1} if node is short else node for node in machines.nodes
        ]
        with pytest.raises(ClusterError, match="no room"):
            check_room(machines.peers, PROFILES[name], fewer)


def test_a_profile_that_starts_ray_gives_it_the_gpus(name: str) -> None:
    profile, machines = PROFILES[name], MACHINES[name]
    if profile.ray.address is None and machines.nodes[0].get("GPU"):
        assert profile.ray.num_gpus == machines.nodes[0]["GPU"]
    else:
        assert profile.ray.num_gpus is None


def test_profiles_for_several_machines_join_a_cluster_and_spread(name: str) -> None:
    profile = PROFILES[name]
    several = len(MACHINES[name].nodes) > 1
    assert (profile.ray.address == "auto") == several
    assert (profile.placement.strategy == "SPREAD") == several


def test_transport_suits_the_machines(name: str) -> None:
    profile, machines = PROFILES[name], MACHINES[name]
    if profile.exchange.transport == "collective":  # NCCL refuses two ranks on one GPU
        assert profile.students.gpus > 0.5
    if profile.exchange.transport == "cuda_ipc":  # only processes on one host share memory
        assert profile.placement.strategy == "STRICT_PACK"
    if len(machines.nodes) > 1:  # nothing is known about these hosts
        assert profile.exchange.transport == "object_store"
    if profile.students.gpus == 0:  # results of these profiles must be identical
        assert (profile.exchange.precision, profile.exchange.codec) == ("float32", "dense")


def test_no_profile_opens_the_dashboard_or_uses_a_lossy_codec(name: str) -> None:
    profile = PROFILES[name]
    assert not profile.ray.dashboard
    assert profile.exchange.codec in ("dense", "factored", "auto"), "lossless by default"


def test_evaluators_stay_off_gpu_nodes_only_through_the_custom_resource() -> None:
    without = PROFILES["cpu_evaluators"].model_copy(
        update={"evaluators": PROFILES["cpu_evaluators"].evaluators.model_copy(update={"resources": {}})}
    )
    nodes = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}]
    assert len(check_room(2, without, nodes)) == 4
    with pytest.raises(ClusterError, match="cpu_node"):
        check_room(2, PROFILES["cpu_evaluators"], nodes)


def test_the_two_profiles_for_several_nodes_differ_in_storage_alone() -> None:
    plain, stored = PROFILES["several_nodes"], PROFILES["several_nodes_object_storage"]
    assert plain.storage_path is None
    assert stored.storage_path is not None
    assert plain.model_copy(update={"name": stored.name, "storage_path": stored.storage_path}) == stored


def test_the_documentation_lists_every_profile_with_its_transport() -> None:
    listed = dict(
        re.findall(r"^\| \[`(\w+)`\]\(\.\./cluster_configs/\1\.yaml\) \|.*\| `(\w+)`[^|]*\|$", CLUSTERS, re.MULTILINE)
    )
    assert listed == {name: profile.exchange.transport for name, profile in PROFILES.items()}


def test_the_documentation_names_existing_files() -> None:
    named = set(re.findall(r"\b(?:launch|cluster_configs)/[\w./-]*\w", CLUSTERS))
    assert len(named) > 15
    assert sorted(path for path in named if not (REPOSITORY / path).exists()) == []
