"""What processes come to on their devices."""

from __future__ import annotations

from typing import Any

import pytest

from ray_l4.errors import ClusterError, ConfigError
from ray_l4.methods import graph_of
from ray_l4.planning.batch_shape import batch_shape
from ray_l4.planning.devices import Device, devices_of, node_memory
from ray_l4.planning.process_baselines import GPU_CONTEXT, LEARNER_PROCESS, RAY_ITSELF, RAY_WORKER
from ray_l4.planning.processes import COORDINATION, Needs, Planner, Process
from ray_l4.planning.units import parse_size, size_text
from tests.planning.planning_fixtures import experiment, profile

GIB = 2**30
PLANNER = Planner()


def needs_of(config: Any = None, **sections: Any) -> Needs:
    config, cluster = config or experiment(), profile(**sections)
    return PLANNER.needs(config, cluster, batch_shape(config, cluster))


def devices(config: Any = None, memory: int | None = GIB, **sections: Any) -> list[Device]:
    config = config or experiment()
    return devices_of(needs_of(config, **sections), graph_of(config).size, profile(**sections), memory)


def role(needs: Needs, name: str) -> Process:
    return next(process for process in needs.processes if process.role == name)


def test_on_one_machine_all_processes_share_its_memory() -> None:
    needs = needs_of()
    (node,) = devices(ray={"num_cpus": 2}, memory=None)
    assert sorted(node.holds) == sorted(["student 0", "student 1", "evaluator", COORDINATION, COORDINATION])
    total = sum(process.count * process.host for process in needs.processes)
    assert node.needed == total + RAY_ITSELF + needs.object_store
    assert node.there == node_memory()
    assert all(process.host == process.device_bytes >= RAY_WORKER for process in needs.processes)


def test_one_process_holds_everyone() -> None:
    sections = {"exchange": {"transport": "in_process"}}
    (node,), needs = devices(**sections), needs_of(**sections)
    assert node.holds == ("everyone",)
    assert node.needed == role(needs, "everyone").host > LEARNER_PROCESS
    assert needs.object_store == 0
    more = needs_of(**sections, evaluators={"count": 3})
    assert role(more, "everyone").host - role(needs, "everyone").host == 2 * 4 * needs.parameters, "a model for each"


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
    own = [device for device in devices(students=students, evaluators=evaluators) if "GPU" in device.name]
    assert [list(device.holds) for device in own] == expected
    needs = needs_of(students=students, evaluators=evaluators)
    for device in own:
        assert device.needed == sum(role(needs, name).device_bytes for name in device.holds)
        assert device.needed >= GPU_CONTEXT * len(device.holds)
        assert device.there == GIB


def test_spread_students_have_a_node_each_and_the_command_line_is_on_the_first() -> None:
    own = devices(placement={"strategy": "STRICT_SPREAD"})
    assert [device.name for device in own] == ["node 0, main memory", "node 1, main memory"]
    assert own[1].holds == ("student 1",)
    assert COORDINATION in own[0].holds and "evaluator" in own[0].holds


def test_too_small_a_device() -> None:
    own = devices(memory=2 * GIB)
    assert [device.fits for device in own] == [False]
    assert [device.fits for device in devices(memory=100 * GIB)] == [True]
    assert Device("?", (), 10, None).fits, "nobody has said how much it has"


def test_a_machine_without_room_and_a_cluster_of_which_nothing_is_known() -> None:
    with pytest.raises(ClusterError, match="no room for 2 students"):
        devices(memory=None, ray={"num_cpus": 1})
    with pytest.raises(ClusterError, match="--device-memory"):
        devices(memory=None, ray={"address": "head:6379"})
    assert devices(ray={"address": "head:6379"})[0].there == GIB


def test_ranks_of_a_sharded_student_hold_slices_and_the_layers_at_work() -> None:
    students = {"gpus": 1, "shards_per_student": 4}
    data = role(needs_of(students=students), "student 0")
    full = role(needs_of(students={**students, "sharding": "full"}), "student 0")
    assert (data.count, full.count) == (4, 4)
    parameters = needs_of(students=students).parameters
    assert data.device["weights"] == 4 * parameters
    assert full.device["weights"] == parameters
    assert full.device["optimiser"] == -(-data.device["optimiser"] // 4)
    assert full.device["activations"] == data.device["activations"]
    assert 0 < full.device["gathered"] < 3 * 4 * parameters
    assert "gathered" not in role(needs_of(students={"gpus": 1, "sharding": "full"}), "student 0").device


def test_what_is_on_its_way() -> None:
    needs = needs_of(exchange={"steps_ahead": 5})
    checkpoints = 2 * 4 * needs.parameters
    assert needs.object_store == checkpoints + 2 * needs.published * 7
    assert needs_of(exchange={"transport": "collective"}).object_store == checkpoints
    assert needs_of(experiment("lamol")).published == 0


def test_a_teacher_is_a_process_that_publishes_and_reads_nothing() -> None:
    needs = needs_of(experiment("l2kd-word"))
    teacher, student = role(needs, "teacher"), role(needs, "student 0")
    assert teacher.device_bytes < student.device_bytes
    assert needs.published == needs.received > 0


def test_peers_may_have_models_of_their_own() -> None:
    wide = {"model": {"from_scratch": {"width": 128}}}
    needs = needs_of(experiment(peers={"each": [{}, wide]}))
    assert role(needs, "student 1").device["weights"] > 2 * role(needs, "student 0").device["weights"]
    assert needs.parameters == role(needs, "student 1").device["weights"] // 4


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("16GiB", 16 * GIB), ("80 GB", 80 * 10**9), ("1.5gib", 3 * GIB // 2), ("512MiB", 512 * 2**20), ("1000", 1000)],
)
def test_amounts_of_memory(text: str, nbytes: int) -> None:
    assert parse_size(text, "here") == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "16 apples", "-1GiB", "0GiB", "1,5GiB"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--device-memory.*16GiB"):
        parse_size(text, "--device-memory")


def test_sizes_in_words() -> None:
    assert [size_text(n) for n in (0, 1023, 2048, 5.25 * 2**20, 540 * 2**20, 1.44 * GIB, 300 * GIB)] == [
        *("0 B", "1023 B", "2.0 KiB", "5.2 MiB", "540 MiB", "1.4 GiB", "300 GiB")
    ]
