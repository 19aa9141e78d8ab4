"""What a profile asks of a cluster, and whether it fits."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_l4.cluster.placement import bundles, check_room, describe_request, local_resources, room_for
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError


def profile(strategy: str = "PACK", **sections: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"placement": {"strategy": strategy}, **sections})


def test_students_come_first_and_evaluators_follow() -> None:
    cluster = profile(students={"cpus": 2, "gpus": 1}, evaluators={"count": 2, "cpus": 1, "gpus": 0.5})
    student, evaluator = {"CPU": 2, "GPU": 1}, {"CPU": 1, "GPU": 0.5}
    assert bundles(3, cluster) == [student, student, student, evaluator, evaluator]


def test_a_student_of_several_shards_has_a_bundle_for_each_rank() -> None:
    cluster = profile(
        students={"gpus": 1, "shards_per_student": 4, "resources": {"fast": 0.5}},
        evaluators={"resources": {"slow": 1}},
    )
    assert bundles(2, cluster) == [{"CPU": 1, "GPU": 1, "fast": 0.5}] * 8 + [{"slow": 1}]
    nodes = [{"CPU": 4.0, "GPU": 4.0, "fast": 2.0}] * 2 + [{"CPU": 1.0, "slow": 1.0}]
    assert check_room(2, cluster, nodes) == [0] * 4 + [1] * 4 + [2], "the ranks of a student stand side by side"


def test_what_reserves_nothing_has_no_bundle() -> None:
    assert bundles(2, profile()) == [{"CPU": 1}, {"CPU": 1}], "evaluators share the students' cores by default"
    with pytest.raises(ValidationError, match="students must reserve something"):
        profile(students={"cpus": 0})


def test_the_request_in_words() -> None:
    cluster = profile(students={"cpus": 0.5, "gpus": 0.25}, evaluators={"count": 3})
    assert describe_request(2, cluster) == (
        "2 students with 0.5 CPU and 0.25 GPU each, 3 evaluators with 0 CPU and 0 GPU each"
    )
    cluster = profile(students={"gpus": 1, "shards_per_student": 4}, evaluators={"cpus": 1, "resources": {"disk": 2}})
    assert describe_request(2, cluster) == (
        "2 students of 4 ranks with 1 CPU and 1 GPU per rank, 1 evaluator with 1 CPU and 0 GPU and 2 disk each"
    )


def test_a_local_cluster_has_what_the_machine_has_and_at_most_what_the_profile_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asking = {"students": {"gpus": 1}}
    cores = float(len(os.sched_getaffinity(0)))
    assert local_resources(profile(ray={"num_cpus": 7}, **asking)) == {"CPU": 7.0, "GPU": 2.0}
    assert local_resources(profile(ray={"num_gpus": 1}, **asking)) == {"CPU": cores, "GPU": 1.0}
    assert local_resources(profile(ray={"num_gpus": 3}, **asking))["GPU"] == 2.0, "those that are there"
    assert local_resources(profile(ray={"num_gpus": 0}, **asking))["GPU"] == 0.0
    assert local_resources(profile())["GPU"] == 0.0, "nobody asks for one"


ONE_GPU = {"students": {"cpus": 1, "gpus": 0.5}}


@pytest.mark.parametrize(
    ("strategy", "nodes", "expected"),
    [
        ("PACK", [{"CPU": 2, "GPU": 1}], [0, 0]),
        ("PACK", [{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}], [0, 1]),
        ("SPREAD", [{"CPU": 2, "GPU": 1}], [0, 0]),
        ("SPREAD", [{"CPU": 2, "GPU": 2}, {"CPU": 1, "GPU": 1}], [0, 1]),
        ("STRICT_SPREAD", [{"CPU": 8, "GPU": 8}, {"CPU": 1, "GPU": 1}], [0, 1]),
        ("STRICT_PACK", [{"CPU": 2, "GPU": 1}, {"CPU": 9, "GPU": 9}], [0, 0]),
        ("STRICT_PACK", [{"CPU": 1, "GPU": 9}, {"CPU": 2, "GPU": 1}], [1, 1]),
        ("PACK", [{"CPU": 9}, {"CPU": 2, "GPU": 1}], [1, 1]),
    ],
)
def test_where_two_students_go(strategy: str, nodes: list[dict[str, float]], expected: list[int]) -> None:
    assert check_room(2, profile(strategy, **ONE_GPU), nodes) == expected


@pytest.mark.parametrize(
    ("strategy", "nodes"),
    [
        ("PACK", []),
        ("PACK", [{"CPU": 1, "GPU": 1}]),
        ("PACK", [{"CPU": 8}]),
        ("STRICT_PACK", [{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}]),
        ("STRICT_SPREAD", [{"CPU": 8, "GPU": 8}]),
        ("SPREAD", [{"CPU": 2, "GPU": 0}]),
    ],
)
def test_what_does_not_fit(strategy: str, nodes: list[dict[str, float]]) -> None:
    with pytest.raises(ClusterError, match=rf"no room for 2 students with 1 CPU and 0.5 GPU.*placement {strategy}\)"):
        check_room(2, profile(strategy, **ONE_GPU), nodes)


def test_the_refusal_says_what_there_is_and_what_to_do() -> None:
    with pytest.raises(ClusterError) as caught:
        check_room(3, profile(**ONE_GPU), [{"CPU": 2.0, "GPU": 1.0}])
    assert "There is one node with 2 CPU, 1 GPU. Ask for fewer peers (peers.count)" in str(caught.value)
    with pytest.raises(ClusterError, match="are 2 nodes with 1 CPU, 0 GPU; 0 CPU, 4 GPU"):
        check_room(3, profile(**ONE_GPU), [{"CPU": 1.0}, {"GPU": 4.0}])
    with pytest.raises(ClusterError, match="are 0 nodes with nothing"):
        check_room(1, profile(), [])
    with pytest.raises(ClusterError, match=r"are 9 nodes with 8 x \(1 CPU, 0 GPU\); 0 CPU, 4 GPU"):
        check_room(30, profile(), [{"CPU": 1.0}] * 8 + [{"GPU": 4.0}])


@pytest.mark.parametrize(
    ("peers", "sections", "nodes", "words"),
    [
        (
            4,
            {"students": {"gpus": 1}},
            [{"CPU": 8, "GPU": 2}],
            [
                "asks for 4 CPU (4 students with 1 CPU each), there are 8; "
                "asks for 4 GPU (4 students with 1 GPU each), there are 2. "
            ],
        ),
        (
            2,
            {"students": {"shards_per_student": 4, "gpus": 1}},
            [{"CPU": 8, "GPU": 4}],
            [
                "asks for 8 GPU (2 students of 4 ranks with 1 GPU per rank), there are 4. ",
                "fewer ranks (students.shards_per_student)",
            ],
        ),
        (
            2,
            {"students": {"gpus": 0.7}, "evaluators": {"gpus": 0.6}},
            [{"CPU": 8, "GPU": 2}],
            [
                "asks for 2 GPU (2 students with 0.7 GPU each, 1 evaluator with 0.6 GPU each), there are 2. ",
                "That is enough in total, but a process takes a share of one GPU",
            ],
        ),
        (
            1,
            {"evaluators": {"count": 2, "resources": {"score": 1}}},
            [{"CPU": 8}],
            [
                "2 evaluators with 0 CPU and 0 GPU and 1 score each",
                "asks for 2 score (2 evaluators with 1 score each), there are 0. ",
                "one node with 8 CPU, 0 GPU, 0 score. ",
                """A node offers score if Ray was started there with --resources='{"score": 1}'.""",
            ],
        ),
        (
            2,
            {"placement": {"strategy": "STRICT_SPREAD"}},
            [{"CPU": 8}],
            ["but each process takes a node of its own"],
        ),
        (
            3,
            {"placement": {"strategy": "STRICT_PACK"}},
            [{"CPU": 2}] * 2,
            ["but all processes have to fit on one node", "are 2 nodes with 2 x (2 CPU, 0 GPU)"],
        ),
    ],
)
def test_the_refusal_names_every_resource(
    peers: int, sections: dict[str, Any], nodes: list[dict[str, float]], words: list[str]
) -> None:
    with pytest.raises(ClusterError) as caught:
        check_room(peers, ClusterConfig.model_validate(sections), nodes)
    for text in words:
        assert text in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.05, 1 / 3, 1 / 9])
def test_fractions_of_a_gpu_add_up_to_one(share: float) -> None:
    """In floats, 0.05 does not go into 1.0 twenty times, but twenty students share a GPU."""
    count = round(1 / share)
    cluster = profile(students={"cpus": 0, "gpus": share})
    assert check_room(count, cluster, [{"GPU": 1.0}]) == [0] * count
    with pytest.raises(ClusterError):
        check_room(count + 1, cluster, [{"GPU": 1.0}])


def test_the_nodes_are_left_as_they_were() -> None:
    node = {"CPU": 4.0}
    check_room(2, profile(), [node])
    assert node == {"CPU": 4.0}


@pytest.mark.parametrize(
    ("cpus", "most", "expected"), [(1, 5, 1), (2, 5, 2), (4, 5, 4), (9, 5, 5), (4, 1, 1), (4, 2, 2)]
)
def test_as_many_students_as_there_is_room_for_and_work(cpus: float, most: int, expected: int) -> None:
    assert room_for(1, most, profile(), [{"CPU": cpus}]) == expected


def test_room_for_more_leaves_room_for_the_evaluators() -> None:
    cluster = profile(evaluators={"count": 2, "cpus": 1})
    assert room_for(1, 8, cluster, [{"CPU": 4.0}, {"CPU": 1.0}]) == 3


def test_room_for_fewer_than_it_takes_is_none() -> None:
    with pytest.raises(ClusterError, match="no room for 2 students"):
        room_for(2, 5, profile(), [{"CPU": 1.0}])


nodes = st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 6), "GPU": st.integers(0, 3)}), max_size=4)


@given(
    nodes,
    st.integers(1, 4),
    st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]),
    st.sampled_from([(1, 0), (1, 1), (2, 0), (0, 1)]),
    st.integers(0, 2),
)
def test_a_placement_overloads_no_node_and_keeps_the_strategy(
    nodes: list[dict[str, float]], peers: int, strategy: str, share: tuple[int, int], evaluators: int
) -> None:
    cluster = profile(
        strategy,
        students={"cpus": share[0], "gpus": share[1]},
        evaluators={"count": max(evaluators, 1), "cpus": 1 if evaluators else 0},
    )
    wanted = bundles(peers, cluster)
    try:
        chosen = check_room(peers, cluster, nodes)
    except ClusterError:
        if strategy != "STRICT_SPREAD":  # one node that holds everything would have been enough
            total = {name: sum(bundle.get(name, 0) for bundle in wanted) for name in ("CPU", "GPU")}
            assert not any(all(node[name] >= amount for name, amount in total.items()) for node in nodes)
        return
    assert len(chosen) == len(wanted)
    for index, node in enumerate(nodes):
        for name, amount in node.items():
            there = [bundle for bundle, place in zip(wanted, chosen, strict=True) if place == index]
            assert sum(bundle.get(name, 0) for bundle in there) <= amount
    if strategy == "STRICT_PACK":
        assert len(set(chosen)) == 1
    if strategy == "STRICT_SPREAD":
        assert len(set(chosen)) == len(chosen)


@given(nodes, st.integers(1, 3), st.integers(0, 4), st.sampled_from(["PACK", "STRICT_PACK", "STRICT_SPREAD"]))
def test_what_fits_is_the_largest_number_that_does(
    nodes: list[dict[str, float]], least: int, more: int, strategy: str
) -> None:
    def fits(students: int) -> bool:
        try:
            check_room(students, profile(strategy), nodes)
        except ClusterError:
            return False
        return True

    if not fits(least):
        return
    found = room_for(least, least + more, profile(strategy), nodes)
    assert fits(found)
    assert not any(fits(students) for students in range(found + 1, least + more + 1))
