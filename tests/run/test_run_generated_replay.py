"""Generated replay: what is asked for before a stage, which student generates it, and which of it is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_l4.cluster.evaluators import Evaluators
from ray_l4.cluster.handles import EvaluatorHandle, ModelRef
from ray_l4.cluster.rpc import LocalRpc
from ray_l4.errors import PeerLostError
from ray_l4.methods import get_method
from ray_l4.monitor.live_view import headline
from ray_l4.run.generated_replay import PseudoExamples, collect_replay
from ray_l4.run.work_queue import Job, WorkQueue
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import TOKENS, concatenated
from tests.learner import learner_fixtures as small
from tests.run.run_fixtures import bare_context

TASKS = ("a", "b", "c", "d", "e")
LONGEST = 7
"""Tokens of the longest training sequence."""


@pytest.fixture(scope="module")
def tok() -> TaskTokenizer:
    return small.tokenizer(TASKS)


def setup_of(
    tok: TaskTokenizer, sizes: dict[str, int], method: str = "l4", peers: int | None = None, **sections: Any
) -> Setup:
    """Return a set-up whose training tables have these sizes; only their lengths matter here."""
    config = small.experiment(stream=list(sizes), **sections)
    row = get_method(method)
    tables = {
        task: pa.table({"ids": [[0] * (LONGEST - row % 2) for row in range(size)]}) for task, size in sizes.items()
    }
    return Setup(config, row, row.graph(peers or row.peers), tok, 64, tables, {})


def wanted_of(setup: Setup, stage: int) -> PseudoExamples:
    """What the stage needs if all students are present."""
    return PseudoExamples.of(setup, stage, setup.topology.students)


def stream(new: int, previous: int) -> dict[str, int]:
    """A stream in which a task with ``new`` examples follows ``previous`` others."""
    return {**dict.fromkeys(TASKS[:previous], 11), TASKS[previous]: new}


@pytest.mark.parametrize(
    ("new", "totals"),
    [
        (2536, (508, 508, 507, 508)),
        (6604, (1321, 1320, 1320, 1320)),
        (6525, (1305, 1304, 1305, 1304)),
        (6000, (1200, 1200, 1200, 1200)),
        (6228, (1246, 1246, 1245, 1244)),
        (6446, (1290, 1290, 1290, 1288)),
        (8442, (1689, 1688, 1689, 1688)),
        (7944, (1589, 1588, 1587, 1588)),
        (115000, (23000, 23000, 22998, 23000)),
    ],
)
def test_the_counts_of_the_papers(tok: TaskTokenizer, new: int, totals: tuple[int, ...]) -> None:
    """REFERENCE.md#worked-values, gamma = 0.2: totals for 1 to 4 previous tasks, an equal share for each."""
    for previous, total in enumerate(totals, start=1):
        wanted = wanted_of(setup_of(tok, stream(new, previous), replay={"ratio": 0.2}), previous)
        assert len(wanted.gens) == len(wanted.seeds) == len(wanted.tasks) == total
        assert [wanted.tasks.count(task) for task in TASKS[:previous]] == [total // previous] * previous


def test_pseudo_examples_come_in_the_order_of_the_stream(tok: TaskTokenizer) -> None:
    wanted = wanted_of(setup_of(tok, {"c": 3, "a": 5, "b": 10}, replay={"ratio": 0.4}), 2)
    assert wanted.tasks == ("c", "c", "a", "a")
    assert wanted.gens == (tok.gen["c"], tok.gen["c"], tok.gen["a"], tok.gen["a"])


def test_the_count_follows_the_new_task_and_not_the_old_ones(tok: TaskTokenizer) -> None:
    setup = setup_of(tok, {"a": 1000, "b": 10, "c": 500}, replay={"ratio": 0.2})
    assert [len(wanted_of(setup, stage).gens) for stage in range(3)] == [0, 2, 100]


@pytest.mark.parametrize(("method", "ratio"), [("finetune", 0.2), ("lamol", 0.0)])
def test_without_replay_nothing_is_asked_for(tok: TaskTokenizer, method: str, ratio: float) -> None:
    setup = setup_of(tok, stream(100, 2), method, replay={"ratio": ratio})
    assert wanted_of(setup, 2) == PseudoExamples(2, (), (), (), ())


def test_the_first_stage_has_nothing_to_replay(tok: TaskTokenizer) -> None:
    assert wanted_of(setup_of(tok, {"a": 100}), 0) == PseudoExamples(0, (), (), (), ())


def test_every_pseudo_example_has_a_seed_of_its_own(tok: TaskTokenizer) -> None:
    setup = setup_of(tok, {"a": 9, "b": 100, "c": 100}, seed=4)
    wanted = [wanted_of(setup, stage) for stage in (1, 2)]
    seeds = [seed for own in wanted for seed in own.seeds]
    assert len(set(seeds)) == len(seeds)
    assert wanted[1].seeds[3] == derive(4, "replay", 2, 3)
    assert wanted_of(replace(setup, experiment=small.experiment(seed=5)), 1).seeds != wanted[0].seeds


# --- collecting


class Parrot:
    """An evaluator whose pseudo-examples show their task token and seed; those with an odd seed have no ANS token."""

    def ready(self) -> None:
        """An object of this process is."""

    def __init__(self, tok: TaskTokenizer) -> None:
        self.tok = tok
        self.asked: list[tuple[str, Any, Any, list[int], list[int]]] = []

    def replay(self, checkpoint: str, description: Any, weights: Any, student: int, *request: Any) -> list[np.ndarray]:
        gens, seeds, max_length = request
        assert checkpoint.endswith(f".student-{student}")
        assert max_length == LONGEST + 2, "with task token and EOS"
        self.asked.append((checkpoint, description, weights, gens, seeds))
        return [self._pseudo_example(gen, seed) for gen, seed in zip(gens, seeds, strict=True)]

    def peak_memory(self) -> int:
        return 7

    def _pseudo_example(self, gen: int, seed: int) -> np.ndarray:
        middle = [self.tok.ans] if seed % 2 == 0 else []
        return np.asarray([gen, seed % 250, *middle, 7], np.int32)


class Backwards(LocalRpc):
    """An RPC whose results arrive in the reverse order."""

    def ready(self, references: Any) -> list[Any]:
        return list(reversed(references))


@dataclass(frozen=True)
class Collected:
    """The outcome of a call of ``collect_replay``."""

    tables: dict[int, pa.Table]
    """Student -> the table that it replays."""
    evaluators: list[Parrot]
    record: list[dict[str, Any]]
    wanted: PseudoExamples
    events: list[str]

    @property
    def table(self) -> pa.Table:
        """The table that all students share."""
        (table,) = {id(table): table for table in self.tables.values()}.values()
        return table


def collected(
    tok: TaskTokenizer,
    path: Path,
    chunk: int = 4,
    workers: int = 1,
    wanted: PseudoExamples | None = None,
    generator: str = "first",
    peers: int = 2,
) -> Collected:
    replay = {"ratio": 0.4, "chunk": chunk, "generator": generator}
    setup = setup_of(tok, {"a": 5, "b": 5, "c": 50}, peers=peers, replay=replay)
    wanted = wanted or wanted_of(setup, 2)
    evaluators, rpc = [Parrot(tok) for _ in range(workers)], Backwards()
    context = bare_context(setup, path)
    queue = WorkQueue(
        rpc, Evaluators([EvaluatorHandle(rpc, evaluator) for evaluator in evaluators]), 10, context.timeline
    )
    tables = collect_replay(
        context, wanted, setup.topology.students, queue, models_of(wanted, rpc).__getitem__, on_nap=lambda: None
    )
    record = pq.read_table(path / "replay" / f"stage-{wanted.stage}.parquet").to_pylist()
    return Collected(tables, evaluators, record, wanted, context.progress.snapshot().events)


def models_of(wanted: PseudoExamples, rpc: LocalRpc) -> dict[int, ModelRef]:
    """Each generator's model, which is only a name here."""
    return {
        student: ModelRef(
            f"replay-{wanted.stage}.student-{student}",
            rpc.put({"model": f"description {student}"}),
            rpc.put(f"weights {student}"),  # type: ignore[arg-type]
        )
        for student in wanted.generators
    }


def test_work_is_handed_out_in_fixed_chunks(tok: TaskTokenizer, tmp_path: Path) -> None:
    found = collected(tok, tmp_path, chunk=8, workers=2)
    evaluators, wanted = found.evaluators, found.wanted
    asked = sorted((call for evaluator in evaluators for call in evaluator.asked), key=lambda call: call[3])
    assert sorted(len(call[3]) for call in asked) == [4, 8, 8], "20 pseudo-examples in chunks of 8"
    assert all(call[:3] == ("replay-2.student-0", {"model": "description 0"}, "weights 0") for call in asked)
    assert sorted(seed for call in asked for seed in call[4]) == sorted(wanted.seeds)
    assert all(evaluator.asked for evaluator in evaluators), "both had something to do"


def test_progress_is_shown_while_evaluators_generate(tok: TaskTokenizer, tmp_path: Path) -> None:
    setup = setup_of(tok, {"a": 5, "b": 5, "c": 50}, replay={"ratio": 0.4, "chunk": 8})
    context, rpc, wanted = bare_context(setup, tmp_path), LocalRpc(), wanted_of(setup, 2)
    queue = WorkQueue(rpc, Evaluators([EvaluatorHandle(rpc, Parrot(tok))]), 10, context.timeline)
    context.progress.update(num_stages=3, stage=2, task="c", phase="replay")
    shown: list[str] = []

    def look() -> None:
        shown.append(headline(context.progress.snapshot()))

    collect_replay(context, wanted, setup.topology.students, queue, models_of(wanted, rpc).__getitem__, look)
    start = "task 3 of 3 (c), replay, "
    counts = [line.removeprefix(start).split(";")[0] for line in shown]
    assert [f"{done} of 20 pseudo-examples generated" for done in (0, 8, 16)] == counts
    assert context.progress.snapshot().replay_total == 0


@pytest.mark.parametrize(("chunk", "workers"), [(1, 1), (3, 2), (7, 3), (64, 1)])
def test_replay_does_not_depend_on_how_the_work_was_divided(
    tok: TaskTokenizer, tmp_path: Path, chunk: int, workers: int
) -> None:
    expected = collected(tok, tmp_path / "reference")
    found = collected(tok, tmp_path / "other", chunk, workers)
    assert found.table.equals(expected.table)
    assert found.record == expected.record


def test_valid_pseudo_examples_become_examples_of_the_stage(tok: TaskTokenizer, tmp_path: Path) -> None:
    found = collected(tok, tmp_path)
    table, record, wanted = found.table, found.record, found.wanted
    assert table.schema == TOKENS
    assert 0 < table.num_rows < len(wanted.gens)
    valid = [index for index, seed in enumerate(wanted.seeds) if seed % 2 == 0]
    assert [row["ids"] for row in table.to_pylist()] == [[wanted.seeds[i] % 250, tok.ans, 7] for i in valid]
    assert table["task"].to_pylist() == [wanted.tasks[i] for i in valid]
    assert table["gen"].to_pylist() == [wanted.gens[i] for i in valid]
    assert set(table["origin"].to_pylist()) == {"generated"}
    assert table["sample_id"].to_pylist() == [f"replay-2-{i}" for i in range(len(valid))]
    assert [row["index"] for row in record if row["valid"]] == valid


def test_all_pseudo_examples_are_recorded_with_the_reason_if_they_were_dropped(
    tok: TaskTokenizer, tmp_path: Path
) -> None:
    found = collected(tok, tmp_path)
    record, wanted = found.record, found.wanted
    assert [row["index"] for row in record] == list(range(20))
    assert [row["task"] for row in record] == list(wanted.tasks)
    assert {row["student"] for row in record} == {0}
    for row, seed in zip(record, wanted.seeds, strict=True):
        assert row["valid"] == (seed % 2 == 0)
        assert row["reason"] == ("" if row["valid"] else "no answer token")
        assert row["text"] == tok.decode(row["ids"])
        assert row["ids"][1] == seed % 250


@pytest.mark.parametrize("generator", ["first", "own", "pool"])
def test_without_valid_pseudo_examples_the_stage_learns_its_own_examples(
    tok: TaskTokenizer, tmp_path: Path, generator: str
) -> None:
    """REFERENCE.md#replay: training goes on without replay."""
    gens = (tok.gen["a"],) * 3
    wanted = PseudoExamples(1, (0,) * 3, ("a",) * 3, gens, (1, 3, 5))
    found = collected(tok, tmp_path, wanted=wanted, generator=generator)
    assert len(found.record) == 3
    (warning,) = found.events
    assert "warning: 0 of 3 generated examples of a are valid (no answer token: 3)" in warning
    own = small.tokens(tok, current=4, replayed=0)
    for table in found.tables.values():
        assert table.num_rows == 0
        assert concatenated(own, table).equals(own)


def test_replay_goes_before_scores_that_wait(tok: TaskTokenizer, tmp_path: Path) -> None:
    """Students stand still until replay is there."""
    order: list[str] = []

    class Noting(Parrot):
        def replay(self, *arguments: Any) -> list[np.ndarray]:
            order.append("replay")
            return super().replay(*arguments)

        def score(self, task: str, predictions: Any) -> None:
            order.append("score")

    setup = setup_of(tok, {"a": 5, "b": 50}, replay={"ratio": 0.4, "chunk": 64})
    context, rpc, wanted = bare_context(setup, tmp_path), LocalRpc(), wanted_of(setup, 1)
    queue = WorkQueue(rpc, Evaluators([EvaluatorHandle(rpc, Noting(tok))]), 10, context.timeline)
    queue.add([Job(f"score {i}", lambda own: own.score("a", ()), lambda value: None) for i in range(3)])
    collect_replay(context, wanted, setup.topology.students, queue, models_of(wanted, rpc).__getitem__, lambda: None)
    assert order[0] == "replay"


def test_an_interrupted_wait_leaves_no_replay_in_the_queue(tok: TaskTokenizer, tmp_path: Path) -> None:
    """Chunks that nobody has generated yet may need the weights of a student that is lost."""
    setup = setup_of(tok, {"a": 5, "b": 5, "c": 50}, replay={"ratio": 0.4, "chunk": 2})
    context, rpc, wanted = bare_context(setup, tmp_path), LocalRpc(), wanted_of(setup, 2)
    queue = WorkQueue(rpc, Evaluators([EvaluatorHandle(rpc, Parrot(tok))]), 10, context.timeline)
    scored: list[Any] = []
    queue.add([Job("score", lambda own: own.peak_memory(), scored.append)])

    def lose() -> None:
        raise PeerLostError("student 0: its process died")

    with pytest.raises(PeerLostError, match="student 0: its process died"):
        collect_replay(context, wanted, setup.topology.students, queue, models_of(wanted, rpc).__getitem__, lose)
    assert len(queue) <= 2, "the score, and a chunk that is under way"
    queue.wait(lambda: not len(queue), lambda: None)
    assert scored == [7]
    assert not (tmp_path / "replay").exists()


# --- who generates


@pytest.mark.parametrize("peers", [1, 2, 3])
def test_students_may_each_generate_all_of_it_or_share_the_work(tok: TaskTokenizer, peers: int) -> None:
    found = {
        generator: wanted_of(setup_of(tok, stream(100, 2), peers=peers, replay={"generator": generator}), 2)
        for generator in ("first", "own", "pool")
    }
    assert found["first"].students == (0,) * 20
    assert found["own"].students == tuple(student for student in range(peers) for _ in range(20))
    assert found["own"].tasks == found["first"].tasks * peers
    assert found["pool"].students == tuple(index % peers for index in range(20))
    assert found["pool"].tasks == found["first"].tasks
    for wanted in found.values():
        assert len(set(wanted.seeds)) == len(wanted.seeds), "nobody repeats a pseudo-example of another one"
        own = [seed for seed, student in zip(wanted.seeds, wanted.students, strict=True) if student == 0]
        assert set(own) <= set(found["first"].seeds), "student 0 generates what it would on its own"


@pytest.mark.parametrize("generator", ["own", "pool"])
def test_each_student_s_pseudo_examples_come_from_its_own_weights(
    tok: TaskTokenizer, tmp_path: Path, generator: str
) -> None:
    found = collected(tok, tmp_path, chunk=8, workers=2, generator=generator, peers=3)
    made_by = dict(zip(found.wanted.seeds, found.wanted.students, strict=True))
    for evaluator in found.evaluators:
        for checkpoint, description, weights, _, seeds in evaluator.asked:
            (student,) = {made_by[seed] for seed in seeds}
            assert (checkpoint, weights) == (f"replay-2.student-{student}", f"weights {student}")
            assert description == {"model": f"description {student}"}
    assert [row["student"] for row in found.record] == list(found.wanted.students)


def test_students_with_replay_of_their_own_get_equally_many(tok: TaskTokenizer, tmp_path: Path) -> None:
    """Otherwise their batches would not hold the same current examples, on which they are compared."""
    found = collected(tok, tmp_path, generator="own", peers=3)
    valid = {s: [row for row in found.record if row["student"] == s and row["valid"]] for s in range(3)}
    fewest = min(map(len, valid.values()))
    assert len({len(own) for own in valid.values()}) > 1, "otherwise this would show nothing"
    assert {table.num_rows for table in found.tables.values()} == {fewest}
    for student, table in found.tables.items():
        made = [row["ids"][1:] for row in valid[student]]
        assert all(ids in made for ids in table["ids"].to_pylist()), "its own pseudo-examples"
    assert len({tuple(map(tuple, table["ids"].to_pylist())) for table in found.tables.values()}) == 3


def test_those_that_are_left_out_for_that_are_spread_over_the_tasks(tok: TaskTokenizer, tmp_path: Path) -> None:
    """Student 0 has eight valid pseudo-examples, four for each of two tasks, and student 1 only four."""
    tasks = ("a",) * 4 + ("b",) * 4
    seeds = (2, 4, 6, 8, 10, 12, 14, 16, 18, 1, 20, 3, 22, 5, 24, 7)
    gens = tuple(tok.gen[task] for task in tasks)
    wanted = PseudoExamples(2, (0,) * 8 + (1,) * 8, tasks * 2, gens * 2, seeds)
    found = collected(tok, tmp_path, wanted=wanted, generator="own")
    assert [table["task"].to_pylist() for table in found.tables.values()] == [["a", "a", "b", "b"]] * 2


@pytest.mark.parametrize(("generator", "generators"), [("first", [1]), ("own", [1, 2]), ("pool", [1, 2])])
def test_after_a_loss_those_that_are_present_generate(
    tok: TaskTokenizer, tmp_path: Path, generator: str, generators: list[int]
) -> None:
    """Student 0 is lost. The others generate as many pseudo-examples as they would have got with it."""
    setup = setup_of(tok, stream(100, 2), peers=3, replay={"generator": generator})
    whole, wanted = wanted_of(setup, 2), PseudoExamples.of(setup, 2, (1, 2))
    assert wanted.generators == generators
    assert len(wanted.gens) == (2 if generator == "own" else 1) * 20
    assert len(whole.gens) == (3 if generator == "own" else 1) * 20
    rpc, context = LocalRpc(), bare_context(setup, tmp_path)
    queue = WorkQueue(rpc, Evaluators([EvaluatorHandle(rpc, Parrot(tok))]), 10, context.timeline)
    tables = collect_replay(context, wanted, (1, 2), queue, models_of(wanted, rpc).__getitem__, lambda: None)
    assert set(tables) == {1, 2}
    assert all(table.num_rows for table in tables.values())
