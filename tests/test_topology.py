"""Topologies that a user may choose, by name, as pairs or in a file; invalid ones are refused with their location."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml, load_experiment
from ray_l4.errors import ConfigError
from ray_l4.methods import (
    METHODS,
    Topology,
    complete,
    from_edges,
    graph_in_words,
    graph_name,
    graph_of,
    resolved,
    ring,
    star,
    taught,
    teacher_experiment,
)

sizes = st.integers(1, 9)


@st.composite
def digraphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Draw a size, and edges in any order."""
    size = draw(sizes)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    return size, draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []


@given(sizes)
def test_in_a_ring_everyone_learns_from_the_one_before(size: int) -> None:
    graph = ring(size)
    assert [graph.teachers_of(i) for i in range(size)] == [((i - 1) % size,) if size > 1 else () for i in range(size)]


def test_for_two_peers_ring_and_star_are_complete() -> None:
    assert ring(2) == star(2) == complete(2)


@given(sizes)
def test_in_a_star_all_learn_from_the_centre_and_it_from_all(size: int) -> None:
    graph = star(size)
    assert graph.teachers_of(0) == tuple(range(1, size))
    assert all(graph.teachers_of(peer) == (0,) for peer in range(1, size))


@given(digraphs())
def test_edges_are_kept_as_they_are(graph: tuple[int, list[tuple[int, int]]]) -> None:
    size, edges = graph
    made = from_edges(size, edges)
    assert (made.size, made.edges, made.students) == (size, frozenset(edges), tuple(range(size)))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([[0, 1], [0, 3]], r"peers\.topology\.1: \[0, 3\]: there is no peer 3.* set peers\.count to 4"),
        ([[5, 0]], r"there is no peer 5: the 3 peers are numbered from 0\. Use 0 to 2"),
        ([[2, 2]], r"peers\.topology\.0: \[2, 2\]: a peer cannot learn from itself"),
        ([[0, 1], [1, 0], [0, 1]], r"peers\.topology\.2: \[0, 1\]: duplicate of peers\.topology\.0\."),
    ],
)
def test_invalid_edges_are_named(edges: list[list[int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_edges(3, edges)


def test_all_bad_edges_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        from_edges(2, [[0, 0], [0, 1], [7, 1]])
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == ["peers.topology.0", "peers.topology.2"]


# --- lost peers


@given(digraphs(), st.data())
def test_lost_peers_neither_learn_nor_teach_and_the_rest_is_unchanged(
    graph: tuple[int, list[tuple[int, int]]], data: st.DataObject
) -> None:
    size, edges = graph
    before = from_edges(size, edges)
    lost = data.draw(st.sets(st.integers(0, size - 1)))
    after = before.without(lost)
    assert after.size == size, "the others keep their numbers"
    assert set(after.students) == set(range(size)) - lost
    for peer in range(size):
        remaining = () if peer in lost else tuple(t for t in before.teachers_of(peer) if t not in lost)
        assert after.teachers_of(peer) == remaining
        assert not (peer in lost and after.teaches(peer))
    assert before == from_edges(size, edges), "a topology never changes"


def test_peers_may_be_lost_one_after_another() -> None:
    assert complete(4).without({1}).without({3}) == complete(4).without({1, 3})
    assert complete(3).without(()) == complete(3)


def test_a_lost_teacher_has_no_edges() -> None:
    graph = taught(2).without({2})
    assert (graph.frozen, graph.edges, graph.students) == (frozenset(), frozenset(), (0, 1))


# --- in words


def test_graphs_in_words() -> None:
    assert Topology(3, frozenset({(0, 1), (2, 1)})).in_words() == "0 learns from nobody; 1 from 0, 2; 2 from nobody"
    assert taught(1).in_words() == "0 learns from 1 (frozen)"
    assert graph_in_words("ring", 4) == "ring: every student from the one before it"
    assert graph_in_words([[1, 0]], 2) == "as listed: 0 learns from 1; 1 from nobody"
    assert graph_in_words("of a later version", 2) == "of a later version"


@pytest.mark.parametrize("method", METHODS)
def test_every_topology_of_the_table_has_a_description(method: str) -> None:
    name = graph_name(experiment(method))
    assert isinstance(name, str) and graph_in_words(name, 2).startswith(f"{name}: ")


# --- in an experiment


def experiment(method: str = "l4", **peers: object) -> ExperimentConfig:
    base = {"method": method, "stream": ["mini.woz"], "model": {"from_scratch": {}}, "peers": peers}
    base |= {"teachers": {"run": "/a/run", "students": [0, 1]}} if METHODS[method].has_peer_teachers else {}
    return ExperimentConfig.model_validate(base)


@pytest.mark.parametrize(("name", "make"), [("complete", complete), ("ring", ring), ("star", star)])
def test_a_topology_by_name(name: str, make: object) -> None:
    config = resolved(experiment(count=4, topology=name))
    assert graph_of(config) == make(4)  # type: ignore[operator]
    assert graph_name(config) == name


def test_a_topology_as_pairs_in_which_some_peers_have_no_teacher() -> None:
    config = resolved(experiment(count=4, topology=[[2, 0], [0, 1]]))
    graph = graph_of(config)
    assert [graph.teachers_of(peer) for peer in range(4)] == [(2,), (0,), (), ()]
    assert graph.students == (0, 1, 2, 3)
    assert graph_name(config) == [[0, 1], [2, 0]]
    assert graph_of(resolved(experiment(count=2, topology=[]))).edges == frozenset()


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.topology != "complete"])
def test_a_method_with_a_fixed_topology_keeps_it(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"peers\.topology: {method} has a fixed topology .* l4, l4-eq12"):
        resolved(experiment(method, topology="ring"))


def test_teachers_are_trained_without_their_students_graph() -> None:
    assert teacher_experiment(experiment(count=3, topology="ring", each=[{"lr": 1.0}, {}, {}])).peers == (
        experiment(count=1).peers
    )


# --- in a file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment of three peers and a folder of topology files; the current folder is another one."""
    (tmp_path / "graphs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    (tmp_path / "experiment.yaml").write_text(
        "stream: [mini.woz]\nmodel: {from_scratch: {}}\npeers: {count: 3, topology: graphs/a.txt}\n"
    )
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "graphs" / "a.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_pairs_is_read_once_and_written_out(folder: Path) -> None:
    path = write(folder, "# teacher student\n2 0   # the last peer leads\n\n 0\t1\n")
    config = resolved(load_experiment(folder / "experiment.yaml"))
    assert config.peers.topology == [[0, 1], [2, 0]]
    path.unlink()
    (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    again = load_experiment(folder / "config.yaml")
    assert resolved(again) == again == config
    assert graph_of(again).teachers_of(0) == (2,)


def test_a_name_is_never_read_as_a_path(folder: Path) -> None:
    (folder / "ring").write_text("0 1\n")
    config = load_experiment(folder / "experiment.yaml", ["peers.topology=ring"])
    assert graph_of(resolved(config)) == ring(3)


def test_a_path_in_an_override_is_relative_to_the_current_folder(folder: Path) -> None:
    (folder / "elsewhere" / "b.txt").write_text("1 2\n")
    config = load_experiment(folder / "experiment.yaml", ["peers.topology=b.txt"])
    assert graph_of(config).edges == {(1, 2)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n0 3\n", r"a\.txt:2: \[0, 3\]: there is no peer 3"),
        ("\n# x\n1 1\n", r"a\.txt:3: \[1, 1\]: a peer cannot learn from itself"),
        ("0 1\n1 2\n0 1\n", r"a\.txt:3: \[0, 1\]: duplicate of .*a\.txt:1\."),
        ("0 1\n0 -1\n", r"a\.txt:2: expected a teacher and its student, such as 0 1; found '0 -1'"),
        ("0 1 2\n", r"a\.txt:1: expected a teacher and its student"),
        ("0\n1 two\n", r"(?s)a\.txt:1: expected .*a\.txt:2: expected .* found '1 two'"),
        ("# nothing\n", r"a\.txt contains no pairs"),
    ],
)
def test_errors_in_a_file_are_located_by_line(folder: Path, text: str, message: str) -> None:
    write(folder, text)
    with pytest.raises(ConfigError, match=message):
        resolved(load_experiment(folder / "experiment.yaml"))


def test_a_missing_file_may_be_a_misspelt_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*/rin\. Give complete, ring, star, .* Did you mean 'ring'\?"):
        resolved(load_experiment(folder / "experiment.yaml", ["peers.topology=rin"]))
    with pytest.raises(ConfigError, match="graphs cannot be read: Is a directory"):
        resolved(load_experiment(folder / "experiment.yaml", [f"peers.topology={folder / 'graphs'}"]))
    write(folder, "").write_bytes(b"\xff 0\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        resolved(load_experiment(folder / "experiment.yaml"))


@pytest.mark.parametrize("pair", ["[0]", "[0, 1, 2]", "[0, -1]", "[0, 1.5]", "[0, true]", "0 1", "{0: 1}"])
def test_an_item_that_is_not_a_pair_is_named(folder: Path, pair: str) -> None:
    quoted = '"0 1"' if pair == "0 1" else '{"0": 1}' if pair == "{0: 1}" else pair
    with pytest.raises(ConfigError, match=r"--set: peers\.topology\.1: expected a pair \[teacher, student\]"):
        load_experiment(folder / "experiment.yaml", [f"peers.topology=[[0, 1], {quoted}]"])
