"""Scores computed again from stored answers: what is written, what it needs, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ray_l4.errors import RunDirectoryError
from ray_l4.metrics.registry import item_scores, score
from ray_l4.report.summary import summarise
from ray_l4.run.rescoring import Change, rescore
from ray_l4.store.run_directory import Cell, RunDirectory, read_json
from ray_l4.store.sealed import write_record
from tests.run.rescoring_fixtures import METRIC_OF, answers, finished


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_scores_follow_from_the_stored_answers(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    found = rescore(run, write=True)
    assert list(found) == [run.path]
    assert len(found[run.path]) == 9
    for cell, record in run.scores().items():
        items, metric = answers(run.experiment(), cell.task), METRIC_OF[cell.task]
        assert record["values"] == score(metric, items)
        assert (record["headline"], record["stage"], record["examples"]) == (metric, cell.stage, len(items))
        table = pq.read_table(run.path / "predictions" / f"{cell.name}.parquet").to_pydict()
        assert table["score"] == item_scores(metric, items)
        assert table["prediction"] == [item.prediction for item in items]
        assert table["note"][:2] == ["kept 0", "kept 1"], "other columns stay"
    assert run.summary() == json.loads(json.dumps(summarise(run)))
    assert run.summary()["final"]["0"]["own"] == pytest.approx(
        score("avg_rouge", answers(run.experiment(), "own"))["avg_rouge"]
    )
    assert (run.path / "report.md").read_text() != "old"
    assert not (run.path / "report.html").exists(), "a report that was not there is not written"
    again = rescore(run, write=True)[run.path]
    assert all(change.old == change.new for change in again)


def test_the_pooled_references_of_an_old_run(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    [change] = [change for change in rescore(run, write=True)[run.path] if change.cell == Cell(2, 1, 0, "own")]
    assert isinstance(change, Change)
    assert (change.old.metric, change.old.value) == ("wrong", 12.5)
    # Of the first item, 3 of 3 + 5 words and 3 of 2 x 3; of the second, 1 of 2 words and 1 of 2; of the third, none.
    first = 2 * (3 / 8) * (3 / 6) / (3 / 8 + 3 / 6)
    expected = [(first + 0.5 + 0) / 3, (2 * (2 / 6) * (2 / 4) / (2 / 6 + 2 / 4)) / 3]
    values = run.scores()[change.cell]["values"]
    assert [values["rouge1"], values["rouge2"]] == pytest.approx([100 * value for value in expected])


def test_without_writing_nothing_changes(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    before = contents(run.path)
    changes = rescore(run, write=False)[run.path]
    assert all(change.new != change.old for change in changes)
    assert contents(run.path) == before


def test_teachers_that_were_trained_within_the_run_are_scored_again_too(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    teachers = finished(run.teachers())
    assert list(rescore(run, write=True)) == [run.path, teachers.path]
    assert {record["headline"] for record in teachers.scores().values()} == set(METRIC_OF.values())


def test_the_limit_of_the_evaluation_holds(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", evaluation={"limit": 3})
    rescore(run, write=True)
    assert run.scores()[Cell(0, 1, 0, "mini.sql")]["values"]["lfem"] == pytest.approx(200 / 3)


def remove(name: str) -> Callable[[RunDirectory], None]:
    return lambda run: next(run.path.glob(name)).unlink()


def damage(name: str) -> Callable[[RunDirectory], None]:
    return lambda run: next(run.path.glob(name)).write_bytes(b"damaged")


def shorten(run: RunDirectory) -> None:
    path = next(run.path.glob("predictions/stage-1*own*"))
    pq.write_table(pq.read_table(path).slice(0, 2), path)


def clear(folder: str) -> Callable[[RunDirectory], None]:
    def remove_all(run: RunDirectory) -> None:
        for path in (run.path / folder).iterdir():
            path.unlink()

    return remove_all


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("summary.json"), "did not finish"),
        (remove("predictions/stage-1*own*"), "predictions/.*is missing"),
        (clear("predictions"), "is missing"),
        (clear("scores"), "holds no scores"),
        (damage("predictions/stage-0*woz*"), "cannot be read as Parquet"),
        (damage("scores/stage-0*woz*"), "cannot be read as JSON"),
        (shorten, "has 2 answers, but its score is one of 3"),
    ],
)
def test_a_run_that_cannot_be_rescored_is_refused_and_left_as_it_is(
    tmp_path: Path, spoil: Callable[[RunDirectory], None], message: str
) -> None:
    run = finished(tmp_path / "run")
    spoil(run)
    before = contents(run.path)
    with pytest.raises(RunDirectoryError, match=message):
        rescore(run, write=True)
    assert {name: data for name, data in contents(run.path).items() if not name.startswith(".lock")} == before


def test_answers_to_another_test_set_are_refused_where_the_metric_needs_it(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("test: 5", "test: 4"))
    with pytest.raises(RunDirectoryError, match=r"mini\.sql.*test set of task 'mini\.sql'.*'lfem' needs"):
        rescore(run, write=True)


def test_a_test_example_that_the_run_left_out_is_not_missed(tmp_path: Path) -> None:
    """Such as one with the name of a special token that cannot be encoded as text."""
    run = finished(tmp_path / "run")
    for path in run.path.glob("predictions/*mini.sql*"):
        pq.write_table(pq.read_table(path).take([0, 2, 3, 4]), path)
    for path in run.path.glob("scores/*mini.sql*"):
        write_record(path, read_json(path) | {"examples": 4})
    rescore(run, write=True)
    assert run.scores()[Cell(0, 1, 0, "mini.sql")]["values"]["lfem"] == pytest.approx(75.0), "the last one is wrong"


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    with run.lock(), pytest.raises(RunDirectoryError, match="in use by"):
        rescore(run, write=True)


def test_the_copy_of_the_run_gets_the_new_scores(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    copy = tmp_path / "copies" / "run"
    copy.parent.mkdir()
    profile = run.path / "cluster.yaml"
    profile.write_text(profile.read_text().replace("storage_path: null", f"storage_path: {tmp_path / 'copies'}"))
    rescore(run, write=True)
    assert read_json(copy / "summary.json") == run.summary()
