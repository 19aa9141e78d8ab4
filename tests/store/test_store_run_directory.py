"""The run directory: created once, locked by one process, read back as written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import RunDirectoryError
from ray_l4.store.atomic import write_json
from ray_l4.store.record_types import MOST
from ray_l4.store.records import (
    read_guard,
    read_weights,
    write_answers,
    write_guard,
    write_replay,
    write_score,
    write_steps,
    write_timeline,
)
from ray_l4.store.run_directory import TOGETHER, Cell, RunDirectory, RunState, read_json, row_title

EXPERIMENT = ExperimentConfig.model_validate(
    {
        "name": "try",
        "method": "lamol",
        "stream": ["mini.woz", {"name": "mini.rest", "train": 30, "test": "all"}],
        "model": {"from_scratch": {"layers": 1, "width": 32, "heads": 2}},
        "optim": {"lr": 1e-3},
    }
)
CLUSTER = ClusterConfig.model_validate({"students": {"gpus": 0.5}, "timeouts": {"step": 9}})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs" / "one", EXPERIMENT, CLUSTER, {"command": "ray-l4 run x.yaml"})


def test_a_new_run_directory_has_everything_it_was_created_with(run: RunDirectory) -> None:
    opened = RunDirectory.open(run.path)
    assert opened.experiment() == EXPERIMENT
    assert opened.cluster() == CLUSTER
    assert opened.state() == RunState(stages_done=0, wall_seconds=0.0, peak_memory_bytes={})
    assert read_json(opened.path / "manifest.json") == {"command": "ray-l4 run x.yaml"}


def test_an_empty_folder_can_become_a_run_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert RunDirectory.create(tmp_path / "empty", EXPERIMENT, CLUSTER, {}).experiment() == EXPERIMENT


def test_existing_files_are_never_overwritten(run: RunDirectory, tmp_path: Path) -> None:
    before = (run.path / "config.yaml").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"already exists and is not empty.*ray-l4 resume"):
        RunDirectory.create(run.path, EXPERIMENT.model_copy(update={"seed": 1}), CLUSTER, {})
    assert (run.path / "config.yaml").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory.create(tmp_path / "file", EXPERIMENT, CLUSTER, {})


def test_of_two_processes_that_want_one_folder_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have found it empty."""
    monkeypatch.setattr("ray_l4.store.run_directory.refuse_taken", lambda path: None)
    RunDirectory.create(tmp_path / "run", EXPERIMENT, CLUSTER, {})
    other = EXPERIMENT.model_copy(update={"seed": 1})
    with pytest.raises(RunDirectoryError, match="already exists"):
        RunDirectory.create(tmp_path / "run", other, CLUSTER, {})
    assert RunDirectory.open(tmp_path / "run").experiment() == EXPERIMENT


@pytest.mark.parametrize("task", ["mini.woz", "a/b", "名" * 20, "名" * 200, "x" * 500, "a=b" * 70])
def test_a_score_is_found_under_the_name_of_its_task(run: RunDirectory, task: str) -> None:
    cell = Cell(0, 1, 0, task)
    write_score(run, cell, {"task": task, "headline": "em", "values": {"em": 1.0}}, {"prediction": ["x"]})
    write_answers(run, task, ["0"], ["x"])
    assert set(run.scores()) == {cell}
    assert run.answers(task).is_file() and (run.path / "predictions" / f"{cell.name}.parquet").is_file()


def test_a_path_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match=r"file/run: cannot be created \(Not a directory\)"):
        RunDirectory.create(tmp_path / "file" / "run", EXPERIMENT, CLUSTER, {})


def test_a_folder_that_is_not_a_run_directory_cannot_be_opened(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunDirectoryError, match=r"not a run directory \(no (config\.yaml in it|such folder)\)"):
            RunDirectory.open(folder)


def test_an_incompletely_created_run_directory_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.yaml is written last, so a directory without state or manifest does not count as a run."""

    def full(self: RunDirectory, state: RunState) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(RunDirectory, "save_state", full)
    with pytest.raises(OSError, match="disk full"):
        RunDirectory.create(tmp_path / "run", EXPERIMENT, CLUSTER, {})
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        RunDirectory.open(tmp_path / "run")


@pytest.mark.parametrize("full", ["cluster.yaml", "manifest.json", "state.json", "config.yaml"])
def test_a_disk_that_is_full_leaves_the_folder_free_for_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    replace = Path.replace

    def write(source: Path, target: Path) -> Path:
        if target.name == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(RunDirectoryError, match=f"{full}: cannot be written"):
        patched.setattr(Path, "replace", write)
        RunDirectory.create(tmp_path / "run", EXPERIMENT, CLUSTER, {})
    assert not list((tmp_path / "run").iterdir())
    assert RunDirectory.create(tmp_path / "run", EXPERIMENT, CLUSTER, {}).experiment() == EXPERIMENT


def test_only_one_process_at_a_time_holds_the_lock(run: RunDirectory) -> None:
    with (
        run.lock(),
        pytest.raises(RunDirectoryError, match=r"in use by process \d+ on \S+\. Wait"),
        RunDirectory.open(run.path).lock(),
    ):
        pass
    with run.lock():  # the lock is free again
        pass


def test_a_coordinator_that_outlives_its_command_is_waited_for_and_named(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_l4.store.run_directory._WRITER_PATIENCE", 0.1)
    refused = pytest.raises(RunDirectoryError, match=r"in use by process \d+")
    with run.writing(), refused, RunDirectory.open(run.path).lock():
        pass
    with run.lock(), run.writing():
        pass


def test_an_error_releases_the_lock(run: RunDirectory) -> None:
    with pytest.raises(KeyboardInterrupt), run.lock():
        raise KeyboardInterrupt
    with run.lock():
        pass


HOLDER = """
import sys
from collections.abc import Callable
from pathlib import Path
from ray_l4.store.run_directory import RunDirectory
with RunDirectory.open(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_process_that_holds_the_lock_is_named(run: RunDirectory) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(run.path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(RunDirectoryError, match=rf"in use by process {holder.pid} on "), run.lock():
                pass
        finally:
            holder.kill()
    with run.lock():  # a killed process releases its lock
        assert f"process {holder.pid}" not in (run.path / ".lock").read_text()


def test_state_round_trip(run: RunDirectory) -> None:
    state = RunState(stages_done=2, wall_seconds=12.25, peak_memory_bytes={"student-0": 2**31})
    run.save_state(state)
    assert RunDirectory.open(run.path).state() == state


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"stages_done": "two"}', b'{"stages_done": 1, "steps_done": 3}', b"\xff\xfe", b'{"stages'],
)
def test_the_error_for_a_damaged_state_names_the_file(run: RunDirectory, content: bytes) -> None:
    (run.path / "state.json").write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"state\.json: (damaged|cannot be read as JSON)"):
        run.state()


def test_the_error_for_a_missing_state_names_the_file(run: RunDirectory) -> None:
    (run.path / "state.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"state\.json: cannot be read as JSON \(No such file"):
        run.state()


def record(value: float) -> dict[str, object]:
    return {"headline": "em", "values": {"em": value}}


def test_scores_are_read_back_by_cell(run: RunDirectory) -> None:
    """Task names contain dots; the parts of the file name must still be found."""
    cells = [Cell(0, 1, 0, "woz.en"), Cell(12, 9, 1, "rnnlg.rest.json"), Cell(0, 1, 0, "e2enlg")]
    for value, cell in enumerate(cells):
        write_score(run, cell, record(value), {"sample_id": ["0"], "prediction": ["x"], "references": [["x", "y"]]})
    assert run.scores() == {cell: record(value) for value, cell in enumerate(cells)}
    predictions = pq.read_table(run.path / "predictions" / f"{cells[0].name}.parquet").to_pylist()
    assert predictions == [{"sample_id": "0", "prediction": "x", "references": ["x", "y"]}]


@given(
    stage=st.integers(0, 99),
    epoch=st.integers(1, 99),
    student=st.integers(0, 9),
    task=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=15),
)
def test_a_task_can_have_any_name(
    tmp_path_factory: pytest.TempPathFactory, stage: int, epoch: int, student: int, task: str
) -> None:
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    cell = Cell(stage, epoch, student, task)
    write_score(run, cell, record(1), {"sample_id": []})
    assert run.scores() == {cell: record(1)}


def test_usual_task_names_are_not_quoted_in_file_names() -> None:
    assert Cell(1, 9, 0, "woz.en").name == "stage-1.epoch-9.student-0.woz.en"
    assert Cell(1, 9, 0, "my-task_2").name == "stage-1.epoch-9.student-0.my-task_2"


def test_a_run_without_scores_has_none(run: RunDirectory) -> None:
    assert run.scores() == {}


def test_other_files_among_the_scores_are_ignored(run: RunDirectory) -> None:
    write_score(run, Cell(0, 1, 0, "a"), record(1), {"sample_id": []})
    (run.path / "scores" / "stage-0.notes.json").write_text("not ours")
    assert list(run.scores()) == [Cell(0, 1, 0, "a")]


def test_the_error_for_a_damaged_score_names_the_file(run: RunDirectory) -> None:
    write_score(run, Cell(0, 1, 0, "a"), record(1), {"sample_id": []})
    (run.path / "scores" / "stage-0.epoch-1.student-0.a.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"stage-0\.epoch-1\.student-0\.a\.json: cannot be read as JSON"):
        run.scores()


def test_a_score_exists_only_if_its_predictions_do(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash between the two writes, the resumed run must score the cell again."""

    def full(path: Path, value: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ray_l4.store.records.write_record", full)
    with pytest.raises(OSError, match="disk full"):
        write_score(run, Cell(0, 1, 0, "a"), record(1), {"sample_id": ["0"]})
    assert (run.path / "predictions" / "stage-0.epoch-1.student-0.a.parquet").is_file()
    assert run.scores() == {}


def step(stage: int, number: int, student: int, **figures: float) -> dict[str, float]:
    return {"stage": stage, "epoch": 1, "step": number, "student": student, "loss": 0.5, **figures}


def test_figures_of_steps_are_read_in_the_order_of_the_run(run: RunDirectory) -> None:
    """The order of file names differs: stage-10 before stage-2, and epoch-10 before epoch-2."""
    write_steps(run, 10, 1, [step(10, 0, 0)])
    write_steps(run, 2, 10, [step(2, 3, 1), step(2, 3, 0), step(2, 2, 1), step(2, 2, 0)])
    write_steps(run, 2, 2, [step(2, 0, 0), step(2, 0, 1), step(2, 1, 0), step(2, 1, 1)])
    found = [(row["stage"], row["step"], row["student"]) for row in run.step_figures()]
    assert found == [*((2, s, i) for s in range(4) for i in range(2)), (10, 0, 0)]


def test_an_untrained_head_has_no_figures(run: RunDirectory) -> None:
    write_steps(run, 0, 1, [step(0, 0, 0, nll_qa=1.25)])
    (row,) = run.step_figures()
    assert (row["nll_qa"], row["nll_lm"], row["loss"]) == (1.25, None, 0.5)


def test_a_repeated_epoch_replaces_its_figures(run: RunDirectory) -> None:
    write_steps(run, 0, 1, [step(0, 0, 0), step(0, 1, 0)])
    write_steps(run, 0, 1, [step(0, 0, 0, grad_norm=2.0)])
    assert [row["grad_norm"] for row in run.step_figures()] == [2.0]


def test_replayed_examples_are_written_with_the_reason_for_dropping_them(run: RunDirectory) -> None:
    rows = [
        {"student": 0, "valid": True, "reason": "", "text": "x", "ids": np.array([7, 8], np.int32)},
        {"student": 1, "valid": False, "reason": "no answer token", "text": "", "ids": np.array([7])},
        {"student": None, "valid": True, "reason": "", "text": "kept, not generated", "ids": np.array([7])},
    ]
    rows = [{"index": index, "task": "a", **row} for index, row in enumerate(rows)]
    write_replay(run, 1, rows)
    found = pq.read_table(run.path / "replay" / "stage-1.parquet").to_pylist()
    assert found == [{**row, "ids": list(row["ids"])} for row in rows]


def test_answers_of_teachers_are_written_for_any_task_name(run: RunDirectory) -> None:
    write_answers(run, "my/task", ["x-1", "x-0"], ["größe", ""])
    assert run.answers("my/task").parent == run.path / "distil"
    found = pq.read_table(run.answers("my/task")).to_pydict()
    assert found == {"sample_id": ["x-1", "x-0"], "answer": ["größe", ""]}


def test_guard_state_is_read_back_byte_for_byte(run: RunDirectory) -> None:
    states = {(stage, student): safetensors(stage + student) for stage in (0, 1) for student in (0, 1)}
    for (stage, student), data in states.items():
        write_guard(run, stage, student, data)
    assert len(list((run.path / "guards").glob("*.safetensors"))) == 4
    for (stage, student), data in states.items():
        assert read_guard(run, stage, student).tolist() == data.tolist()


def safetensors(number: int) -> np.ndarray:
    return np.frombuffer(save({"a": np.full(5, number, np.float32)}, {"kind": "test"}), np.uint8)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:9], lambda data: b"x" * len(data), bytes]
)
def test_a_damaged_file_of_weights_is_named(run: RunDirectory, damage: Callable[[bytes], bytes]) -> None:
    folder = run.checkpoint(0, 1, 0)
    folder.mkdir(parents=True)
    for path in (folder / "model.safetensors", run.guard(0, 0)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(damage(safetensors(1).tobytes()) if damage is not bytes else b"")
    for read in (lambda: read_weights(folder), lambda: read_guard(run, 0, 0)):
        with pytest.raises(RunDirectoryError, match=r"0\.?(/model)?\.safetensors is damaged: .*Restore it from a copy"):
            read()


def test_spans_are_written_in_seconds(run: RunDirectory) -> None:
    spans = [{"lane": "student 0", "kind": "training", "label": "a, epoch 1", "start": 1.8e9 + 0.125, "end": 1.8e9 + 2}]
    write_timeline(run, spans)
    assert pq.read_table(run.path / "timeline.parquet").to_pylist() == spans
    write_timeline(run, [])
    assert pq.read_table(run.path / "timeline.parquet").num_rows == 0, "a table without rows has the columns"


def test_the_run_directory_of_teachers_is_inside_that_of_the_student(run: RunDirectory) -> None:
    teachers = RunDirectory.create(run.teachers(), EXPERIMENT, CLUSTER, {})
    assert teachers.path == run.path / "teachers"
    assert run.scores() == teachers.scores() == {}
    write_score(teachers, Cell(0, 1, 0, "a"), record(1), {"sample_id": []})
    assert run.scores() == {}, "the two have separate scores"


def test_every_checkpoint_has_its_own_folder(run: RunDirectory) -> None:
    folders = {run.checkpoint(s, e, i) for s in range(3) for e in range(1, 3) for i in range(2)}
    assert len(folders) == 12
    assert run.checkpoint(2, 9, 1) == run.path / "checkpoints" / "stage-2" / "epoch-9" / "student-1"


def test_the_error_for_missing_weights_names_the_file(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match=r"student-0/model\.safetensors: is missing, although.*state\.json"):
        read_weights(run.checkpoint(0, 1, 0))


def test_an_unfinished_run_has_no_summary(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match=r"did not finish\. Resume it: ray-l4 resume"):
        run.summary()
    write_json(run.path / "summary.json", {"seed": 0})
    assert run.summary() == {"seed": 0}


@pytest.mark.parametrize("there", [True, False])
def test_a_run_directory_is_closed_to_others_until_its_owner_shares_it(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    run = RunDirectory.create(folder, EXPERIMENT, CLUSTER, {})
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with run.lock():
        run.save_state(RunState(stages_done=1))
    assert folder.stat().st_mode & 0o777 == 0o755


def test_the_cells_of_all_students_together(run: RunDirectory) -> None:
    cells = [Cell(1, 9, student, "woz.en") for student in (1, TOGETHER, 0)]
    assert [cell.name for cell in sorted(cells)] == [
        "stage-1.epoch-9.student-0.woz.en",
        "stage-1.epoch-9.student-1.woz.en",
        "stage-1.epoch-9.together.woz.en",
    ]
    for cell in cells:
        write_score(run, cell, record(1), {"sample_id": []})
    assert set(run.scores()) == set(cells)
    assert [row_title(cell.student) for cell in sorted(cells)] == ["student 0", "student 1", "together"]
    assert TOGETHER > MOST, "no student has that number"
