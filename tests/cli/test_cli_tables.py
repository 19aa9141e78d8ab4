"""``ray-l4 table`` and ``ray-l4 figure``: what they print and write, and what they refuse."""

from __future__ import annotations

from pathlib import Path

from ray_l4.errors import ConfigError, RunDirectoryError
from tests.cli.cli_fixtures import InThisProcess, refused
from tests.report.finished_runs import TASKS, write_run, write_sweep

CONFIG, RUN_DIRECTORY = ConfigError.exit_code, RunDirectoryError.exit_code


def test_a_table_is_printed_or_written_in_the_format_of_the_name(command: InThisProcess, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    printed = command("table", folder, "--table", "l4-table1")
    assert printed.returncode == 0 and "| l4 " in printed.stdout
    for name, start in (("t.md", "## L4, Table 1"), ("t.tex", r"\begin{table}"), ("t.csv", "table,scale,")):
        out = tmp_path / name
        assert command("table", folder, "--table", "l4-table1", "--out", out).stdout == f"{out}\n"
        assert out.read_text(encoding="utf-8").startswith(start)
    assert command("table", folder, "--format", "csv", "--out", tmp_path / "t.txt").returncode == 0
    assert (tmp_path / "t.txt").read_text(encoding="utf-8").startswith("table,")


def test_a_table_says_what_is_wrong_in_one_message(command: InThisProcess, tmp_path: Path) -> None:
    first, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", "lamol", stream=("ag", "yelp"))
    unfinished = write_run(tmp_path / "c", finished=False)
    refused(command("table", first, other), CONFIG, "the runs learned different tasks", str(other))
    refused(command("table", unfinished), RUN_DIRECTORY, f"ray-l4 resume {unfinished}")
    refused(command("table", first, "--table", "l4-tabel1"), CONFIG, "Did you mean 'l4-table1'")
    refused(command("table", first, "--format", "html"), CONFIG, "--format html", "csv, latex, markdown")
    refused(command("table", first, "--out", first / "config.yaml" / "t.md"), CONFIG, "config.yaml is a file")
    refused(command("table", first, "--out", tmp_path), CONFIG, "is a folder; expected the name of a file")
    refused(command("table", first, "--out", ""), CONFIG, "is a folder; expected the name of a file")


def test_a_sweep_folder_and_the_pattern_of_all_in_it_are_the_same_table(command: InThisProcess, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", {name: {"method": name} for name in ("l4", "lamol")}, "l4-table1")
    (sweep / "table.md").write_text("# sweep", encoding="utf-8")
    (sweep / "logs").mkdir()
    (sweep / "logs" / "l4.log").touch()
    whole = command("table", sweep, "--table", "l4-table1")
    every = command("table", *sorted(sweep.iterdir()), "--table", "l4-table1")
    assert whole.stderr == "" and whole.stdout.splitlines()[3:] == every.stdout.splitlines()[3:]
    assert every.stderr.startswith("skipped, because it is no run directory: ") and "table.md" in every.stderr


def test_partial_names_what_is_left_out(command: InThisProcess, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", {"x": {"method": "l4", "stream": TASKS}, "y": {}}, "l4-table1")
    refused(command("table", sweep), RUN_DIRECTORY, "1 of 2 trials", "--partial")
    partial = command("table", sweep, "--partial")
    assert "- Left out because they have not finished: y." in partial.stdout


def test_a_figure_is_written(command: InThisProcess, tmp_path: Path) -> None:
    folder, out = write_run(tmp_path / "a"), tmp_path / "new" / "figure.png"
    done = command("figure", folder, "--kind", "scores", "--out", out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in out.parent.iterdir()] == ["figure.png"]  # nothing is left beside it


def test_a_figure_says_what_is_wrong_in_one_message(command: InThisProcess, tmp_path: Path) -> None:
    folder, out = write_run(tmp_path / "a", evaluation={"when": "stage"}), tmp_path / "x.png"
    refused(command("figure", folder, "--kind", "scroes", "--out", out), CONFIG, "Did you mean 'scores'")
    refused(command("figure", folder, "--kind", "cost", "--out", out, "--student", "7"), CONFIG, "--student 7")
    refused(command("figure", folder, "--kind", "cost", "--out", tmp_path / "x.doc"), CONFIG, "unknown format 'doc'")
    refused(command("figure", folder, "--kind", "forgetting", "--over-epochs", "--out", out), CONFIG, "when: epoch")
    refused(
        command("figure", tmp_path, "--kind", "cost", "--out", out), RUN_DIRECTORY, f"It holds 1 run: give {tmp_path}/*"
    )


def test_paired_differences_are_those_of_the_sweep_unless_others_are_asked_for(
    command: InThisProcess, tmp_path: Path
) -> None:
    trials = {f"{name}-{seed}": {"method": name, "seed": seed} for name in ("l4", "lamol") for seed in range(3)}
    sweep = write_sweep(tmp_path / "s", trials, against="lamol")
    assert "Paired differences to lamol:\n" in command("table", sweep).stdout
    assert "| lamol   |     3 |    0.00 |" in command("table", sweep, "--against", "l4").stdout
    plain = command("table", sweep, "--against", "none").stdout
    assert command("table", sweep).stdout.startswith(plain) and "Paired" not in plain
    refused(command("table", sweep, "--against", "lamo"), CONFIG, "--against lamo: ", "Did you mean 'lamol'")
    out = tmp_path / "x.png"
    assert command("figure", sweep, "--kind", "differences", "--out", out).returncode == 0
    refused(
        command("figure", sweep / "l4-0", "--kind", "differences", "--out", out),
        CONFIG,
        "--against VARIANT",
        "here: l4",
    )


def test_an_unfinished_reference_of_the_sweep_is_said_and_no_error(command: InThisProcess, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", {"x": {"method": "l4"}, "y": {}}, against="lamol")
    assert "- No finished run of lamol can be paired." in command("table", sweep, "--partial").stdout
