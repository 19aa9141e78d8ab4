"""What is generated before a stage, by whom it is asked for, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_l4.cluster.rpc import InProcess
from ray_l4.methods import get_method
from ray_l4.monitor.timeline import Timeline
from ray_l4.run.generated_replay import ReplayPlan, collect_replay
from ray_l4.run.work_queue import Job, WorkPool
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import TOKENS, concatenated
from tests.learner import learner_fixtures as small

TASKS = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def tok() -> TaskTokenizer:
    return small.tokenizer(TASKS)


def setup_of(
    tok: TaskTokenizer, sizes: dict[str, int], method: str = "l4", peers: int | None = None, **sections: Any
) -> Setup:
    """A set-up whose training tables have these sizes; their content does not matter here."""
    config = small.experiment(stream=list(sizes), **sections)
    row = get_method(method)
    tables = {task: pa.table({"row": range(size)}) for task, size in sizes.items()}
    return Setup(config, row, row.graph(peers or row.peers), tok, 64, tables, {})


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
        plan = ReplayPlan.of(setup_of(tok, stream(new, previous), replay={"ratio": 0.2}), previous)
        assert len(plan.gens) == len(plan.seeds) == len(plan.tasks) == total
        assert [plan.tasks.count(task) for task in TASKS[:previous]] == [total // previous] * previous


def test_samples_come_in_the_order_of_the_stream(tok: TaskTokenizer) -> None:
    plan = ReplayPlan.of(setup_of(tok, {"c": 3, "a": 5, "b": 10}, replay={"ratio": 0.4}), 2)
    assert plan.tasks == ("c", "c", "a", "a")
    assert plan.gens == (tok.gen["c"], tok.gen["c"], tok.gen["a"], tok.gen["a"])


def test_the_count_follows_the_new_task_and_not_the_old_ones(tok: TaskTokenizer) -> None:
    setup = setup_of(tok, {"a": 1000, "b": 10, "c": 500}, replay={"ratio": 0.2})
    assert [len(ReplayPlan.of(setup, stage).gens) for stage in range(3)] == [0, 2, 100]


@pytest.mark.parametrize(("method", "ratio"), [("finetune", 0.2), ("lamol", 0.0)])
def test_without_replay_nothing_is_planned(tok: TaskTokenizer, method: str, ratio: float) -> None:
    setup = setup_of(tok, stream(100, 2), method, replay={"ratio": ratio})
    assert ReplayPlan.of(setup, 2) == ReplayPlan(2, (), (), (), ())


def test_the_first_stage_has_nothing_to_replay(tok: TaskTokenizer) -> None:
    assert ReplayPlan.of(setup_of(tok, {"a": 100}), 0) == ReplayPlan(0, (), (), (), ())


def test_every_sample_has_a_seed_of_its_own(tok: TaskTokenizer) -> None:
    setup = setup_of(tok, {"a": 9, "b": 100, "c": 100}, seed=4)
    plans = [ReplayPlan.of(setup, stage) for stage in (1, 2)]
    seeds = [seed for plan in plans for seed in plan.seeds]
    assert len(set(seeds)) == len(seeds)
    assert plans[1].seeds[3] == derive(4, "replay", 2, 3)
    assert ReplayPlan.of(replace(setup, experiment=small.experiment(seed=5)), 1).seeds != plans[0].seeds


# --- collecting


class Parrot:
    """An evaluator whose samples tell which token and seed they were asked with; odd ones have no ANS."""

    def __init__(self, tok: TaskTokenizer) -> None:
        self.tok = tok
        self.asked: list[tuple[str, Any, Any, list[int], list[int]]] = []

    def replay(
        self, checkpoint: str, student: int, description: Any, weights: Any, gens: list[int], seeds: list[int]
    ) -> list[np.ndarray]:
        assert checkpoint.endswith(f".student-{student}")
        self.asked.append((checkpoint, description, weights, gens, seeds))
        return [self._sample(gen, seed) for gen, seed in zip(gens, seeds, strict=True)]

    def _sample(self, gen: int, seed: int) -> np.ndarray:
        middle = [self.tok.ans] if seed % 2 == 0 else []
        return np.asarray([gen, seed % 250, *middle, 7], np.int32)


class Backwards(InProcess):
    """Results arrive in the wrong order."""

    def ready(self, references: Any) -> list[Any]:
        return list(reversed(references))


@dataclass(frozen=True)
class Collected:
    """What came of a plan."""

    tables: dict[int, pa.Table]
    """Student -> what it replays."""
    evaluators: list[Parrot]
    record: list[dict[str, Any]]
    plan: ReplayPlan

    @property
    def table(self) -> pa.Table:
        """The one that all students share."""
        (table,) = {id(table): table for table in self.tables.values()}.values()
        return table


def collected(
    tok: TaskTokenizer,
    path: Path,
    chunk: int = 4,
    workers: int = 1,
    plan: ReplayPlan | None = None,
    generator: str = "first",
    peers: int = 2,
) -> Collected:
    replay = {"ratio": 0.4, "chunk": chunk, "generator": generator}
    setup = setup_of(tok, {"a": 5, "b": 5, "c": 50}, peers=peers, replay=replay)
    plan = plan or ReplayPlan.of(setup, 2)
    evaluators = [Parrot(tok) for _ in range(workers)]
    run = RunDirectory(path)
    pool = WorkPool(Backwards(), evaluators, 10, Timeline(run))
    models = {student: (f"description {student}", f"weights {student}") for student in plan.generators}
    tables = collect_replay(run, setup, plan, pool, models, lambda: None)
    record = pq.read_table(path / "replay" / f"stage-{plan.stage}.parquet").to_pylist()
    return Collected(tables, evaluators, record, plan)


def test_work_is_handed_out_in_fixed_chunks(tok: TaskTokenizer, tmp_path: Path) -> None:
    found = collected(tok, tmp_path, chunk=8, workers=2)
    evaluators, plan = found.evaluators, found.plan
    asked = sorted((call for evaluator in evaluators for call in evaluator.asked), key=lambda call: call[3])
    assert sorted(len(call[3]) for call in asked) == [4, 8, 8], "20 samples in chunks of 8"
    assert all(call[:3] == ("replay-2.student-0", "description 0", "weights 0") for call in asked)
    assert sorted(seed for call in asked for seed in call[4]) == sorted(plan.seeds)
    assert all(evaluator.asked for evaluator in evaluators), "both had something to do"


@pytest.mark.parametrize(("chunk", "workers"), [(1, 1), (3, 2), (7, 3), (64, 1)])
def test_what_is_kept_does_not_depend_on_who_did_what(
    tok: TaskTokenizer, tmp_path: Path, chunk: int, workers: int
) -> None:
    expected = collected(tok, tmp_path / "reference")
    found = collected(tok, tmp_path / "other", chunk, workers)
    assert found.table.equals(expected.table)
    assert found.record == expected.record


def test_valid_samples_become_examples_of_the_stage(tok: TaskTokenizer, tmp_path: Path) -> None:
    found = collected(tok, tmp_path)
    table, record, plan = found.table, found.record, found.plan
    assert table.schema == TOKENS
    assert 0 < table.num_rows < len(plan.gens)
    valid = [index for index, seed in enumerate(plan.seeds) if seed % 2 == 0]
    assert [row["ids"] for row in table.to_pylist()] == [[plan.seeds[i] % 250, tok.ans, 7] for i in valid]
    assert table["task"].to_pylist() == [plan.tasks[i] for i in valid]
    assert table["gen"].to_pylist() == [plan.gens[i] for i in valid]
    assert set(table["origin"].to_pylist()) == {"generated"}
    assert table["sample_id"].to_pylist() == [f"replay-2-{i}" for i in range(len(valid))]
    assert [row["index"] for row in record if row["valid"]] == valid


def test_all_of_it_is_recorded_with_the_reason_of_what_was_dropped(tok: TaskTokenizer, tmp_path: Path) -> None:
    found = collected(tok, tmp_path)
    record, plan = found.record, found.plan
    assert [row["index"] for row in record] == list(range(20))
    assert [row["task"] for row in record] == list(plan.tasks)
    assert {row["student"] for row in record} == {0}
    for row, seed in zip(record, plan.seeds, strict=True):
        assert row["valid"] == (seed % 2 == 0)
        assert row["reason"] == ("" if row["valid"] else "no answer token")
        assert row["text"] == tok.decode(row["ids"])
        assert row["ids"][1] == seed % 250


@pytest.mark.parametrize("generator", ["first", "own", "pool"])
def test_if_nothing_survives_the_stage_learns_its_own_examples(
    tok: TaskTokenizer, tmp_path: Path, generator: str
) -> None:
    """REFERENCE.md#replay: training goes on without replay."""
    gens = (tok.gen["a"],) * 3
    found = collected(tok, tmp_path, plan=ReplayPlan(1, (0,) * 3, ("a",) * 3, gens, (1, 3, 5)), generator=generator)
    assert len(found.record) == 3
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

        def answer(self) -> None:
            order.append("answer")

    setup = setup_of(tok, {"a": 5, "b": 50}, replay={"ratio": 0.4, "chunk": 64})
    run = RunDirectory(tmp_path)
    pool = WorkPool(InProcess(), [Noting(tok)], 10, Timeline(run))
    pool.add([Job(f"score {i}", "answer", (), lambda value: None) for i in range(3)])
    collect_replay(run, setup, ReplayPlan.of(setup, 1), pool, {0: (None, None)}, lambda: None)
    assert order[0] == "replay"


# --- who generates


@pytest.mark.parametrize("peers", [1, 2, 3])
def test_students_may_each_generate_all_of_it_or_share_the_work(tok: TaskTokenizer, peers: int) -> None:
    plans = {
        generator: ReplayPlan.of(setup_of(tok, stream(100, 2), peers=peers, replay={"generator": generator}), 2)
        for generator in ("first", "own", "pool")
    }
    assert plans["first"].students == (0,) * 20
    assert plans["own"].students == tuple(student for student in range(peers) for _ in range(20))
    assert plans["own"].tasks == plans["first"].tasks * peers
    assert plans["pool"].students == tuple(index % peers for index in range(20))
    assert plans["pool"].tasks == plans["first"].tasks
    for plan in plans.values():
        assert len(set(plan.seeds)) == len(plan.seeds), "nobody repeats another one's sample"
        own = [seed for seed, student in zip(plan.seeds, plan.students, strict=True) if student == 0]
        assert set(own) <= set(plans["first"].seeds), "student 0 generates what it would on its own"


@pytest.mark.parametrize("generator", ["own", "pool"])
def test_each_student_s_samples_come_from_its_own_weights(tok: TaskTokenizer, tmp_path: Path, generator: str) -> None:
    found = collected(tok, tmp_path, chunk=8, workers=2, generator=generator, peers=3)
    made_by = dict(zip(found.plan.seeds, found.plan.students, strict=True))
    for evaluator in found.evaluators:
        for checkpoint, description, weights, _, seeds in evaluator.asked:
            (student,) = {made_by[seed] for seed in seeds}
            assert (checkpoint, weights) == (f"replay-2.student-{student}", f"weights {student}")
            assert description == f"description {student}"
    assert [row["student"] for row in found.record] == list(found.plan.students)


def test_students_with_replay_of_their_own_get_equally_many(tok: TaskTokenizer, tmp_path: Path) -> None:
    """Else their batches would not hold the same current examples, on which they are compared."""
    found = collected(tok, tmp_path, generator="own", peers=3)
    valid = {s: [row for row in found.record if row["student"] == s and row["valid"]] for s in range(3)}
    fewest = min(map(len, valid.values()))
    assert len({len(own) for own in valid.values()}) > 1, "the example would show nothing"
    assert {table.num_rows for table in found.tables.values()} == {fewest}
    for student, table in found.tables.items():
        made = [row["ids"][1:] for row in valid[student]]
        assert all(ids in made for ids in table["ids"].to_pylist()), "its own samples"
    assert len({tuple(map(tuple, table["ids"].to_pylist())) for table in found.tables.values()}) == 3


def test_what_is_left_out_for_that_is_spread_over_the_tasks(tok: TaskTokenizer, tmp_path: Path) -> None:
    """Student 0 has eight valid samples, four for each of two tasks, and student 1 only four."""
    tasks = ("a",) * 4 + ("b",) * 4
    seeds = (2, 4, 6, 8, 10, 12, 14, 16, 18, 1, 20, 3, 22, 5, 24, 7)
    gens = tuple(tok.gen[task] for task in tasks)
    plan = ReplayPlan(2, (0,) * 8 + (1,) * 8, tasks * 2, gens * 2, seeds)
    found = collected(tok, tmp_path, plan=plan, generator="own")
    assert [table["task"].to_pylist() for table in found.tables.values()] == [["a", "a", "b", "b"]] * 2
