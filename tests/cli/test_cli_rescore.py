"""``ray-l4 rescore``: what it prints and writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import run_report
from ray_l4.store.run_directory import TOGETHER, Cell
from tests.cli.cli_fixtures import InThisProcess, refused
from tests.run import run_fixtures as small
from tests.run.rescoring_fixtures import finished


def test_rescore_prints_old_and_new_scores_and_writes_them(command: InThisProcess, tmp_path: Path) -> None:
    runs = [finished(tmp_path / name) for name in ("first", "second")]
    done = command("rescore", *(run.path for run in runs))
    assert done.returncode == 0, done.stderr
    for run in runs:
        assert f"{run.path}: 9 scores computed again, 9 changed\n" in done.stdout
        new = run.scores()[Cell(2, 1, 0, "own")]["values"]["avg_rouge"]
        assert f"  student 0, own: wrong 12.500 -> avg_rouge {new:.3f}\n" in done.stdout
    again = command("rescore", runs[0].path)
    assert f"{runs[0].path}: 9 scores computed again, 0 changed\n" in again.stdout
    assert f"  student 0, own: avg_rouge {new:.3f} (unchanged)\n" in again.stdout


def test_a_dry_run_prints_the_same_and_writes_nothing(command: InThisProcess, tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    shown = command("rescore", run.path, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert command("rescore", run.path).stdout == shown.stdout


def test_rescore_refuses_before_it_changes_the_first_run(command: InThisProcess, tmp_path: Path) -> None:
    run, unfinished = finished(tmp_path / "run"), finished(tmp_path / "unfinished")
    (unfinished.path / "summary.json").unlink()
    refused(command("rescore", run.path, unfinished.path), 5, str(unfinished.path), "did not finish", "ray-l4 resume")
    assert run.scores()[Cell(0, 1, 0, "own")]["headline"] == "wrong"
    refused(command("rescore", tmp_path), 5, "not a run directory")


def test_a_general_text_that_cannot_be_used_is_refused_before_anything_is_written(
    command: InThisProcess, tmp_path: Path
) -> None:
    run = finished(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    refused(command("rescore", run.path, "--set", "evaluation.general_to=1"), 2, "evaluation.general_to=1")
    refused(command("rescore", run.path, "--set", "evaluation.general_tokens=200"), 2, "no general text")
    text = "evaluation.general=prose.txt"
    refused(command("rescore", run.path, "--set", text), 4, str(run.path / "tokenizer"))
    refused(command("rescore", run.path, "--set", text, "--device", "tpu"), 2, "--device tpu")
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_rescore_adds_the_row_of_all_students_together(command: InThisProcess, tmp_path: Path) -> None:
    run, _ = small.complete_run(small.quick("l4"), small.cluster("in_process"), tmp_path / "run")
    (run.path / "report.md").write_text(run_report(FinishedRun.open(run.path)))
    before = small.scores(run)
    option = ("--set", "evaluation.together=true")
    shown = command("rescore", run.path, *option, "--dry-run")
    assert shown.stdout == f"{run.path}: 2 checkpoints of all students to be scored together\n", shown.stderr
    assert small.scores(run) == before and not run.experiment().evaluation.together
    done = command("rescore", run.path, *option, "--set", "cluster.evaluators.count=2")
    assert done.returncode == 0, done.stderr
    assert f"{run.path}: 4 scores of all students together added\n" in done.stdout
    value = run.score(Cell(1, 3, TOGETHER, "mini.woz"))["values"]["joint_goal_em"]
    assert f"  together, mini.woz: {value:.3f}\n" in done.stdout
    assert before.items() <= small.scores(run).items()
    again = command("rescore", run.path)
    assert f"{run.path}: 12 scores computed again, 0 changed\n" in again.stdout
    assert f"  together, mini.woz: joint_goal_em {value:.3f} (unchanged)\n" in again.stdout


def test_rescore_adds_nothing_else(command: InThisProcess, tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    refused(
        command("rescore", run.path, "--set", "evaluation.top_k=3"), 2, "evaluation.top_k=3", "stays as it was made"
    )
    refused(command("rescore", run.path, "--set", "evaluation.together=false"), 2, "expected evaluation.together=true")
    refused(command("rescore", run.path, "--set", "evaluation.together=true"), 2, str(run.path), "a single student")
