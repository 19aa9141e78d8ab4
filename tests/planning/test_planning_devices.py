"""The processes of a run on their devices."""

from __future__ import annotations

from typing import Any

import pytest

from ray_l4.errors import ClusterError, ConfigError
from ray_l4.methods import graph_of
from ray_l4.planning.batch_shape import batch_shape
from ray_l4.planning.devices import Device, devices_of, node_memory
from ray_l4.planning.process_baselines import GPU_CONTEXT, LEARNER_PROCESS, RAY_ITSELF, RAY_WORKER
from ray_l4.planning.processes import COORDINATION, Process
from ray_l4.planning.requirements import Estimator, Requirements
from ray_l4.planning.units import parse_size, size_text
from tests.planning.planning_fixtures import experiment, profile

GIB = 2**30
ESTIMATOR = Estimator()


def requirements_of(config: Any = None, **sections: Any) -> Requirements:
    config, cluster = config or experiment(), profile(**sections)
    return ESTIMATOR.requirements(config, cluster, batch_shape(config, cluster))


def devices(config: Any = None, memory: int | None = GIB, **sections: Any) -> list[Device]:
    config = config or experiment()
    return devices_of(requirements_of(config, **sections), graph_of(config).size, profile(**sections), memory)


def role(requirements: Requirements, name: str) -> Process:
    return next(process for process in requirements.processes if process.role == name)


def test_on_one_machine_all_processes_share_its_memory() -> None:
    requirements = requirements_of()
    (node,) = devices(ray={"num_cpus": 2}, memory=None)
    assert sorted(node.roles) == sorted(["student 0", "student 1", "evaluator", COORDINATION, COORDINATION])
    total = sum(process.count * process.host for process in requirements.processes)
    assert node.needed == total + RAY_ITSELF + requirements.object_store
    assert node.available == node_memory()
    assert all(process.host == process.device_bytes >= RAY_WORKER for process in requirements.processes)


def test_one_process_holds_all_peers_and_evaluators() -> None:
    sections = {"exchange": {"transport": "in_process"}}
    (node,), requirements = devices(**sections), requirements_of(**sections)
    assert node.roles == ("everyone",)
    assert node.needed == role(requirements, "everyone").host > LEARNER_PROCESS
    assert requirements.object_store == 0
    more = requirements_of(**sections, evaluators={"count": 3})
    assert role(more, "everyone").host - role(requirements, "everyone").host == 2 * 4 * requirements.parameters, (
        "one model per evaluator"
    )


@pytest.mark.parametrize(
    ("students", "evaluators", "expected"),
    [
        ({"gpus": 0.4}, {"count": 1, "gpus": 0.2}, [["student 0", "student 1", "evaluator"]]),
        ({"gpus": 0.7}, {"count": 2, "gpus": 0.3}, [["student 0", "evaluator"], ["student 1", "evaluator"]]),
        ({"gpus": 1}, {"count": 1, "cpus": 1}, [["student 0"], ["student 1"]]),
        (
            {"gpus": 1, "shards_per_student": 2},
            {"count": 1, "gpus": 1},
            [["student 0"]] * 2 + [["student 1"]] * 2 + [["evaluator"]],
        ),
    ],
)  # fmt: skip
def test_who_shares_a_gpu(students: dict[str, Any], evaluators: dict[str, Any], expected: list[list[str]]) -> None:
    gpus = [device for device in devices(students=students, evaluators=evaluators) if "GPU" in device.name]
    assert [list(device.roles) for device in gpus] == expected
    requirements = requirements_of(students=students, evaluators=evaluators)
    for device in gpus:
        assert device.needed == sum(role(requirements, name).device_bytes for name in device.roles)
        assert device.needed >= GPU_CONTEXT * len(device.roles)
        assert device.available == GIB


def test_spread_students_have_a_node_each_and_the_command_line_is_on_the_first() -> None:
    placed = devices(placement={"strategy": "STRICT_SPREAD"})
    assert [device.name for device in placed] == ["node 0, main memory", "node 1, main memory"]
    assert placed[1].roles == ("student 1",)
    assert COORDINATION in placed[0].roles and "evaluator" in placed[0].roles


def test_a_device_that_is_too_small_does_not_fit() -> None:
    small = devices(memory=2 * GIB)
    assert [device.fits for device in small] == [False]
    assert [device.fits for device in devices(memory=100 * GIB)] == [True]
    assert Device("?", (), 10, None).fits, "its memory is unknown"


def test_a_machine_without_room_and_a_cluster_of_unknown_memory_are_refused() -> None:
    with pytest.raises(ClusterError, match="no room for 2 students"):
        devices(memory=None, ray={"num_cpus": 1})
    with pytest.raises(ClusterError, match="--device-memory"):
        devices(memory=None, ray={"address": "head:6379"})
    assert devices(ray={"address": "head:6379"})[0].available == GIB


def test_ranks_of_a_sharded_student_hold_slices_and_the_gathered_layers() -> None:
    students = {"gpus": 1, "shards_per_student": 4}
    data = role(requirements_of(students=students), "student 0")
    full = role(requirements_of(students={**students, "sharding": "full"}), "student 0")
    assert (data.count, full.count) == (4, 4)
    parameters = requirements_of(students=students).parameters
    assert data.device["weights"] == 4 * parameters
    assert full.device["weights"] == parameters
    assert full.device["optimiser"] == -(-data.device["optimiser"] // 4)
    assert full.device["activations"] == data.device["activations"]
    assert 0 < full.device["gathered"] < 3 * 4 * parameters
    assert "gathered" not in role(requirements_of(students={"gpus": 1, "sharding": "full"}), "student 0").device


def test_the_object_store_holds_checkpoints_and_payloads_of_several_steps() -> None:
    requirements = requirements_of(exchange={"steps_ahead": 5})
    checkpoints = 2 * 4 * requirements.parameters
    assert requirements.object_store == checkpoints + 2 * requirements.published * 7
    assert requirements_of(exchange={"transport": "collective"}).object_store == checkpoints
    assert requirements_of(experiment("lamol")).published == 0


def test_a_frozen_teacher_is_a_smaller_process() -> None:
    requirements = requirements_of(experiment("l2kd-word"))
    teacher, student = role(requirements, "teacher"), role(requirements, "student 0")
    assert teacher.device_bytes < student.device_bytes
    assert requirements.published == requirements.received > 0


def test_peers_may_have_models_of_their_own() -> None:
    wide = {"model": {"from_scratch": {"width": 128}}}
    requirements = requirements_of(experiment(peers={"each": [{}, wide]}))
    assert role(requirements, "student 1").device["weights"] > 2 * role(requirements, "student 0").device["weights"]
    assert requirements.parameters == role(requirements, "student 1").device["weights"] // 4


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("16GiB", 16 * GIB), ("80 GB", 80 * 10**9), ("1.5gib", 3 * GIB // 2), ("512MiB", 512 * 2**20), ("1000", 1000)],
)
def test_memory_sizes_are_parsed(text: str, nbytes: int) -> None:
    assert parse_size(text, "here") == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "16 apples", "-1GiB", "0GiB", "1,5GiB"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--device-memory.*16GiB"):
        parse_size(text, "--device-memory")


def test_sizes_are_printed_in_a_suitable_unit() -> None:
    assert [size_text(n) for n in (0, 1023, 2048, 5.25 * 2**20, 540 * 2**20, 1.44 * GIB, 300 * GIB)] == [
        *("0 B", "1023 B", "2.0 KiB", "5.2 MiB", "540 MiB", "1.4 GiB", "300 GiB")
    ]
