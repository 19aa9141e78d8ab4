"""The runs behind a command's paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_l4.errors import RunDirectoryError
from ray_l4.report.run_search import FoundRuns, find_runs
from tests.report.finished_runs import write_run, write_sweep

TRIALS = {"l4": {"method": "l4"}, "lamol": {"method": "lamol", "finished": False}, "ewc": {}}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with a finished, a begun and a new trial, and the files that a sweep has beside them."""
    folder = write_sweep(tmp_path_factory.mktemp("runs") / "sweep", TRIALS)
    for name in ("logs", ".tune"):
        (folder / name).mkdir()
    (folder / "table.md").write_text("# sweep", encoding="utf-8")
    return folder


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name for path in paths]


def test_a_sweep_folder_stands_for_its_runs(sweep: Path) -> None:
    found = find_runs([sweep])
    assert (names(found.finished), names(found.unfinished), found.others) == (["l4"], ["lamol", "ewc"], ())
    assert [one.title for one in found.sweeps] == ["by hand"]
    assert [Path(note.split(": ")[1].split(", ")[0]).name for note in found.notes()] == ["lamol"]


def test_of_all_in_a_sweep_folder_what_is_no_run_is_skipped_with_a_note(sweep: Path) -> None:
    found = find_runs(sorted(sweep.iterdir()))
    assert (names(found.finished), names(found.unfinished)) == (["l4"], ["lamol"])
    assert names(found.others) == [".tune", "logs", "sweep.json", "table.md"]
    assert found.notes(unfinished=False) == [
        f"skipped, because it is no run directory: {', '.join(map(str, found.others))}"
    ]


def test_a_run_given_twice_counts_once(sweep: Path) -> None:
    assert find_runs([sweep / "l4", sweep, sweep.parent / "sweep" / "." / "l4"]).finished == (sweep / "l4",)


def test_a_path_that_does_not_exist_is_an_error_even_beside_a_run(sweep: Path) -> None:
    with pytest.raises(RunDirectoryError, match="none: no such folder; expected a run directory or"):
        find_runs([sweep / "l4", sweep / "none"])


def test_without_any_run_it_says_what_was_expected(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"logs: not a run directory .*, nor the folder of a sweep"):
        find_runs([sweep / "logs"])
    with pytest.raises(RunDirectoryError, match=r"none of these 2 paths, such as .*logs, is a run directory"):
        find_runs([sweep / "logs", sweep / "table.md"])
    write_run(tmp_path / "a", finished=False)
    with pytest.raises(RunDirectoryError, match=rf"It holds 1 run: give {tmp_path}/\*"):
        find_runs([tmp_path])


def test_many_paths_are_not_all_listed() -> None:
    others = tuple(Path(f"file-{index}") for index in range(6))
    assert FoundRuns(others=others).notes() == [
        "skipped, because it is no run directory: file-0, file-1, file-2, file-3 and 2 more"
    ]
