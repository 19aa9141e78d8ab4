"""The table of methods, and the graphs of who learns from whom."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import ConfigError
from ray_l4.methods import METHODS, TOPOLOGIES, Topology, complete, get_method, isolated

sizes = st.integers(1, 12)


@st.composite
def graphs(draw: st.DrawFn) -> Topology:
    """Any directed graph without loops."""
    size = draw(sizes)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    return Topology(size, frozenset(draw(st.sets(st.sampled_from(pairs))) if pairs else set()))


@given(sizes)
def test_in_a_complete_graph_everyone_learns_from_everyone_else(size: int) -> None:
    graph = complete(size)
    for peer in range(size):
        assert graph.teachers_of(peer) == tuple(other for other in range(size) if other != peer)
        assert graph.teaches(peer) == (size > 1)


@given(sizes)
def test_isolated_peers_neither_learn_nor_teach(size: int) -> None:
    graph = isolated(size)
    assert graph.size == size
    assert all(graph.teachers_of(peer) == () and not graph.teaches(peer) for peer in range(size))


@given(graphs())
def test_teachers_and_edges_are_two_views_of_one_graph(graph: Topology) -> None:
    seen = {(teacher, peer) for peer in range(graph.size) for teacher in graph.teachers_of(peer)}
    assert seen == graph.edges
    assert {peer for peer in range(graph.size) if graph.teaches(peer)} == {teacher for teacher, _ in graph.edges}


@given(graphs())
def test_teachers_come_in_ascending_order_and_once(graph: Topology) -> None:
    for peer in range(graph.size):
        teachers = graph.teachers_of(peer)
        assert list(teachers) == sorted(set(teachers))
        assert peer not in teachers


def test_an_edge_points_from_teacher_to_student() -> None:
    ring = Topology(3, frozenset({(0, 1), (1, 2), (2, 0)}))
    assert [ring.teachers_of(peer) for peer in range(3)] == [(2,), (0,), (1,)]
    one_way = Topology(2, frozenset({(0, 1)}))
    assert (one_way.teaches(0), one_way.teaches(1)) == (True, False)


@pytest.mark.parametrize(
    ("name", "peers", "edges", "heads", "replay"),
    [
        ("finetune", 1, 0, ("qa",), "none"),
        ("lamol", 1, 0, ("qa", "lm"), "generated"),
        ("l4", 2, 2, ("qa", "lm"), "generated"),
        ("l4-eq12", 2, 2, ("qa", "lm"), "generated"),
    ],
)
def test_the_rows_of_the_design(name: str, peers: int, edges: int, heads: tuple[str, ...], replay: str) -> None:
    method = get_method(name)
    assert (method.peers, len(method.graph(method.peers).edges), method.heads, method.replay) == (
        peers,
        edges,
        heads,
        replay,
    )


def test_every_row_can_be_used() -> None:
    for name, method in METHODS.items():
        assert name == method.name
        assert method.topology in TOPOLOGIES
        assert "qa" in method.heads, "progress and reports show figures of the answer head"
        assert method.graph(3).size == 3
        assert method.replay == "none" or "lm" in method.heads, "what is not learned cannot be generated"


@pytest.mark.parametrize("name", ["finetune", "lamol", "l4"])
def test_labels_are_used_in_every_stage(name: str) -> None:
    assert [get_method(name).uses_labels(stage) for stage in range(3)] == [True, True, True]


def test_the_literal_equations_use_labels_in_the_first_stage_only() -> None:
    assert [get_method("l4-eq12").uses_labels(stage) for stage in range(3)] == [True, False, False]


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"method: unknown method 'lamoll'\. Did you mean 'lamol'\?"):
        get_method("lamoll")
    with pytest.raises(ConfigError, match=r"Known: finetune, l4, l4-eq12, lamol\."):
        get_method("xyzzy")


def test_the_table_cannot_be_changed_by_accident() -> None:
    with pytest.raises(TypeError):
        METHODS["mine"] = METHODS["l4"]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        METHODS["l4"].peers = 3  # type: ignore[misc]
