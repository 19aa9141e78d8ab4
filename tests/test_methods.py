"""The table of methods, the kinds of stages, and the topologies of who learns from whom."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, fields
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError
from ray_l4.learner.guards import GUARDS
from ray_l4.methods import (
    ALL_TASKS,
    METHODS,
    STAGE_KINDS,
    TOPOLOGIES,
    Method,
    Stage,
    Topology,
    complete,
    get_method,
    isolated,
    taught,
)

sizes = st.integers(1, 12)


@st.composite
def graphs(draw: st.DrawFn) -> Topology:
    """Draw any directed graph without self-loops."""
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


@given(sizes)
def test_a_frozen_teacher_teaches_all_and_learns_nothing(students: int) -> None:
    graph = taught(students)
    assert graph.students == tuple(range(students))
    assert graph.frozen == {students}
    assert all(graph.teachers_of(student) == (students,) for student in graph.students)
    assert graph.teachers_of(students) == ()
    assert graph.teaches(students)
    assert not any(graph.teaches(student) for student in graph.students)


@given(sizes, sizes)
def test_of_several_frozen_teachers_every_student_learns_from_all(students: int, teachers: int) -> None:
    graph = taught(students, teachers)
    assert graph.size == students + teachers and graph.students == tuple(range(students))
    assert graph.frozen == set(range(students, students + teachers))
    assert all(graph.teachers_of(student) == tuple(sorted(graph.frozen)) for student in graph.students)
    assert not any(graph.teachers_of(teacher) for teacher in graph.frozen)
    assert taught(students, 1) == taught(students)


@given(sizes, st.sampled_from([isolated, complete]))
def test_without_a_frozen_peer_all_learn(size: int, make: object) -> None:
    assert make(size).students == tuple(range(size))  # type: ignore[operator]


BOTH = ("qa", "lm")
ROWS = {
    "finetune": (("qa",), 1, "isolated", "always", "none", "none", "given", "stream", "none"),
    "lamol": (BOTH, 1, "isolated", "always", "generated", "none", "given", "stream", "none"),
    "er": (BOTH, 1, "isolated", "always", "stored", "none", "given", "stream", "none"),
    "ewc": (("qa",), 1, "isolated", "always", "none", "none", "given", "stream", "fisher"),
    "mas": (("qa",), 1, "isolated", "always", "none", "none", "given", "stream", "sensitivity"),
    "lwf": (("qa",), 1, "taught", "always", "none", "previous", "given", "stream", "none"),
    "agem": (("qa",), 1, "isolated", "always", "none", "none", "given", "stream", "memory"),
    "l2kd-word": (BOTH, 1, "taught", "never", "generated", "task", "given", "stream", "none"),
    "l2kd-seq": (BOTH, 1, "isolated", "always", "generated", "task", "teacher", "stream", "none"),
    "l2kd-seq-soft": (BOTH, 1, "taught", "never", "generated", "task", "teacher", "stream", "none"),
    "l4": (BOTH, 2, "complete", "always", "generated", "none", "given", "stream", "none"),
    "l4-eq12": (BOTH, 2, "complete", "first_stage", "generated", "none", "given", "stream", "none"),
    "l4-released": (BOTH, 2, "complete", "without_replay", "generated", "none", "given", "stream", "none"),
    "single-qa": (("qa",), 1, "isolated", "always", "none", "none", "given", "separate", "none"),
    "single-qa-lm": (BOTH, 1, "isolated", "always", "none", "none", "given", "separate", "none"),
    "multi-qa": (("qa",), 1, "isolated", "always", "none", "none", "given", "union", "none"),
    "multi-qa-lm": (BOTH, 1, "isolated", "always", "none", "none", "given", "union", "none"),
    "multi-seq-kd": (BOTH, 1, "isolated", "always", "none", "task", "teacher", "union", "none"),
    "l4-onpolicy": (BOTH, 2, "complete", "always", "generated", "none", "given", "stream", "none"),
    "sdft": (("qa",), 1, "taught", "never", "none", "previous", "given", "stream", "none"),
    "derpp": (("qa",), 1, "isolated", "always", "none", "none", "given", "stream", "dark"),
    "olora": (("qa",), 1, "isolated", "always", "none", "none", "given", "stream", "subspace"),
    "fuse": (BOTH, 1, "taught", "always", "recorded", "peers", "given", "last", "none"),
    "retrieve": (("qa",), 1, "isolated", "always", "none", "none", "given", "stream", "none"),
}
"""The rows according to the papers (REFERENCE.md#lamol-loss, #word-kd, #seq-kd, #other-modes, #regularisers, #l4,
#fusion)."""
COLUMNS = ("heads", "peers", "topology", "labels", "replay", "teacher", "answers", "stages", "guard")


def test_the_table_holds_what_the_papers_describe() -> None:
    assert {name: tuple(getattr(row, column) for column in COLUMNS) for name, row in METHODS.items()} == ROWS
    assert {field.name for field in fields(Method)} == {
        "name",
        "summary",
        "learns",
        "demonstrates",
        "settings",
        *COLUMNS,
    }
    assert [name for name, row in METHODS.items() if not row.learns] == ["retrieve"]
    assert [name for name, row in METHODS.items() if row.demonstrates] == ["sdft"]


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
class TestEveryRow:
    def test_it_has_a_name_and_a_short_summary(self, method: Method) -> None:
        assert METHODS[method.name] is method
        assert 0 < len(method.summary) < 120

    def test_every_value_is_a_known_one(self, method: Method) -> None:
        for name, kind in get_type_hints(Method).items():
            if name in COLUMNS and get_args(kind) and name != "heads":
                assert getattr(method, name) in get_args(kind), name
        assert method.topology in TOPOLOGIES
        assert method.kind is STAGE_KINDS[method.stages]
        assert method.guard in GUARDS

    def test_the_answer_head_comes_first(self, method: Method) -> None:
        """The answer head comes first: progress and reports show its figures."""
        assert method.heads in (("qa",), BOTH)

    def test_only_methods_with_an_lm_head_generate_replay(self, method: Method) -> None:
        assert method.replay != "generated" or "lm" in method.heads

    def test_teachers_are_used(self, method: Method) -> None:
        graph = method.graph(method.peers)
        frozen = bool(graph.frozen)
        assert frozen == (method.topology == "taught")
        assert not frozen or method.teacher != "none", "the weights of a frozen peer have a source"
        assert method.teacher == "none" or frozen or method.answers == "teacher", "every teacher is used"
        assert method.answers == "given" or method.teacher == "task"

    def test_something_is_learned_in_every_stage(self, method: Method) -> None:
        assert method.labels != "never" or method.topology == "taught"
        assert method.labels == "always" or method.graph(method.peers).edges

    def test_only_a_stream_protects_earlier_tasks(self, method: Method) -> None:
        protects = method.replay != "none" or method.guard != "none" or method.teacher == "previous"
        assert method.stages in ("stream", "last") or not protects

    def test_its_settings_are_valid_and_differ_from_the_defaults(self, method: Method) -> None:
        base = {"stream": ["a"], "model": {"name": "m"}}
        plain = ExperimentConfig.model_validate(base)
        for key, value in method.settings:
            group, name = key.split(".")
            section = (base["model"] if group == "model" else {}) | {name: value}  # type: ignore[operator]
            changed = ExperimentConfig.model_validate(base | {group: section})
            assert getattr(getattr(changed, group), name) == value
            differs = getattr(getattr(plain, group), name) != value
            assert differs or key == "distillation.temperature", "defaults need not be set"

    def test_its_topology_allows_any_number_of_students(self, method: Method) -> None:
        for count in (1, 2, 5):
            assert method.graph(count).students == tuple(range(count))

    def test_it_can_be_sent_to_other_processes(self, method: Method) -> None:
        assert pickle.loads(pickle.dumps(method)) == method


# --- kinds of stages

TASKS = ("woz", "sst", "srl")
WORKED_STAGES: dict[str, tuple[list[Stage], list[int], bool]] = {
    "stream": (
        [Stage(task, (task,), (task,), TASKS) for task in TASKS],
        [2] * 3,
        True,
    ),
    "separate": (
        [Stage(task, (task,), (task,), (task,)) for task in TASKS],
        [0, 1, 2],
        False,
    ),
    "union": ([Stage("all", TASKS, TASKS, TASKS)], [0] * 3, False),
    "last": ([Stage("all", TASKS[-1:], TASKS, TASKS)], [0] * 3, False),
}
"""Kind -> the stages of ``TASKS``, each task's final stage, and whether the order of the tasks matters."""


def test_every_kind_of_stages_has_an_entry() -> None:
    assert set(STAGE_KINDS) == set(get_args(get_type_hints(Method)["stages"])) == set(WORKED_STAGES)
    assert ALL_TASKS == "all"


@pytest.mark.parametrize("name", WORKED_STAGES)
def test_stages_of_three_tasks(name: str) -> None:
    kind = STAGE_KINDS[name]
    stages, final, ordered = WORKED_STAGES[name]
    assert kind.stages(TASKS) == stages
    assert [kind.final_stage(task, [stage.tasks for stage in stages]) for task in TASKS] == final
    assert kind.ordered is ordered


@given(st.sampled_from(sorted(STAGE_KINDS)), st.lists(st.text(min_size=1), min_size=1, max_size=6, unique=True))
def test_every_task_is_learned_once_and_scored_in_its_final_stage(name: str, tasks: list[str]) -> None:
    kind = STAGE_KINDS[name]
    stages = kind.stages(tasks)
    assert [task for stage in stages for task in stage.tasks] == tasks
    assert all(set(stage.tasks) <= set(stage.scored) for stage in stages)
    for task in tasks:
        final = kind.final_stage(task, [stage.tasks for stage in stages])
        assert final == max(at for at, stage in enumerate(stages) if task in stage.scored)


def test_a_task_that_comes_back_is_learned_in_a_stage_of_its_own() -> None:
    stream = ["woz", "sst", "woz", "sst", "woz"]
    first, *_, last = STAGE_KINDS["stream"].stages(stream)
    assert (first.name, first.tasks) == ("woz", ("woz",))
    assert (last.name, last.items, last.tasks, last.scored) == ("woz (3)", ("woz (3)",), ("woz",), ("woz", "sst"))
    (union,) = STAGE_KINDS["union"].stages(stream)
    assert union.items == ("woz", "sst", "woz (2)", "sst (2)", "woz (3)") and union.tasks == ("woz", "sst")
    separate = STAGE_KINDS["separate"]
    learned = [stage.tasks for stage in separate.stages(stream)]
    assert [separate.final_stage(task, learned) for task in ("woz", "sst")] == [4, 3], "that learned it last"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("always", {(0, False): True, (0, True): True, (2, False): True, (2, True): True}),
        ("first_stage", {(0, False): True, (0, True): True, (2, False): False, (2, True): False}),
        ("without_replay", {(0, False): True, (0, True): False, (2, False): True, (2, True): False}),
        ("never", {(0, False): False, (0, True): False, (2, False): False, (2, True): False}),
    ],
)
def test_when_labels_are_used(labels: str, expected: dict[tuple[int, bool], bool]) -> None:
    method = Method("m", "", BOTH, labels=labels)  # type: ignore[arg-type]
    assert {(s, r): method.uses_labels(s, replay_in_batch=r) for s, r in expected} == expected


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"method: unknown method 'lamoll'\. Did you mean 'lamol'\?"):
        get_method("lamoll")
    with pytest.raises(ConfigError, match=r"Known: agem, derpp, er, ewc, finetune, .*, single-qa-lm\."):
        get_method("xyzzy")


def test_the_table_cannot_be_changed_by_accident() -> None:
    with pytest.raises(TypeError):
        METHODS["mine"] = METHODS["l4"]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        METHODS["l4"].peers = 3  # type: ignore[misc]
