"""The page as a file: complete, escaped, without any request to the network; and the command that writes it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ray_l4.cli.main import app
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.report.html import page as page_module
from ray_l4.report.html import section_cost, section_scores
from ray_l4.store.atomic import write_json
from ray_l4.store.run_directory import RunDirectory, read_json
from tests.report.finished_runs import TASKS as ORDER
from tests.report.finished_runs import write_sweep
from tests.report.html_runs import (
    COMMAND,
    NASTY,
    TASKS,
    as_an_older_version_left_it,
    change_summary,
    page_of,
    write_run,
)

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """The elements of a page. Fails on an element that is not closed, or closed in the wrong order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return write_run(tmp_path_factory.mktemp("page") / "run")


@pytest.fixture(scope="module")
def page(run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(page_of(run, write_run(tmp_path_factory.mktemp("other") / "other", "multi-qa")))


def test_every_link_leads_somewhere_and_no_name_is_given_twice(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [str(attributes["href"]) for attributes in page.all("a")]
    assert len(targets) == len(page.all("section")) + len(page.all("article"))
    assert {target.removeprefix("#") for target in targets} <= set(ids)


def test_the_page_runs_nothing_and_loads_nothing(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "image", "object", "embed", "base", "form"})
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
    assert "@import" not in page.text
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_what_models_and_users_wrote_is_text(page: Page) -> None:
    assert NASTY.replace("\x07", r"\x07").replace("\u202e", r"\u202e") in page.text
    assert TASKS[1] in page.text
    assert COMMAND in page.text
    assert not set(page.html) & {chr(code) for code in range(32) if chr(code) != "\n"}


def test_the_whole_configuration_is_there(page: Page, run: RunDirectory) -> None:
    for name in ("config.yaml", "cluster.yaml"):
        assert (run.path / name).read_text(encoding="utf-8").strip() in page.text
    assert "2.13.0" in page.text


@pytest.mark.slow
def test_the_same_runs_give_the_same_page(run: RunDirectory) -> None:
    assert page_of(run) == page_of(run)


@pytest.fixture
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the sections with drawings, which take most of the time, for tests that are not about them."""
    monkeypatch.setattr(page_module, "SECTIONS", (section_scores.summary, section_cost.configuration))


def test_titles_say_the_scale(tmp_path: Path, no_drawings: None) -> None:
    runs = [write_run(tmp_path / method, method) for method in ("l4", "lamol")]
    scaled = ", scaled to 0.1 of its examples and epochs"
    for run, title in zip(runs, (", at different scales", scaled), strict=True):
        write_json(run.path / "manifest.json", read_json(run.path / "manifest.json") | {"scale": 0.1})
        assert re.search(f"<h1>2 runs on [^<]+ → e2enlg{title}</h1>", page_of(*runs))
    assert re.search(f"<h1>[^<]+, seed 0{scaled}</h1>", page_of(*runs[:1]))
    assert f"<h2>lamol, seed 0{scaled}</h2>" in page_of(*runs)


def test_an_older_run_has_a_page_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    as_an_older_version_left_it(run)
    assert "by hand: l4 on" in page_of(run)


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    score = run.path / "scores" / "stage-0.epoch-1.student-0.woz.en.json"
    score.write_text('{"headline": "em", "values": {}}', encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=r"0\.woz\.en\.json: damaged.*holds no headline score: 'em'"):
        page_of(run)
    score.write_text('{"headline": "em", "values": {"em": 1.0}}', encoding="utf-8")
    (run.path / "replay" / "stage-1.parquet").write_bytes(b"nothing")
    with pytest.raises(RunDirectoryError, match=r"stage-1\.parquet: cannot be read as Parquet"):
        page_of(run)
    (run.path / "summary.json").unlink()
    with pytest.raises(RunDirectoryError, match="did not finish"):
        page_of(run)


def report(*arguments: object) -> str:
    """Return the output of the command; its errors are raised."""
    result = CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_command_prints_the_table_and_writes_both_reports(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = report(run.path).splitlines()
    assert lines[0].startswith("| ")
    assert lines[-1] == str(run.path / "report.html")
    assert (run.path / "report.html").read_text(encoding="utf-8") == page_of(run)
    assert (run.path / "report.md").is_file()


def test_several_runs_make_one_page_here_or_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawings: None
) -> None:
    runs = [write_run(tmp_path / method, method) for method in ("l4", "lamol")]
    folders = [run.path for run in runs]
    monkeypatch.chdir(tmp_path)
    assert report(*folders).splitlines()[-1] == "report.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page_of(*runs)
    out = tmp_path / "new" / "page.html"
    assert report(*folders, "--out", out).splitlines()[-1] == str(out)
    assert re.search("<h1>2 runs on woz.en → ", out.read_text(encoding="utf-8"))
    assert not (folders[0] / "report.html").exists()


def test_a_page_that_exists_is_not_overwritten_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawings: None
) -> None:
    folders = [write_run(tmp_path / method, method).path for method in ("l4", "lamol")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.html").write_text("mine", encoding="utf-8")
    assert report(*folders).splitlines()[-1] == "report-2.html"
    assert report(*folders).splitlines()[-1] == "report-3.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "mine"
    assert report(*folders, "--out", "report.html").splitlines()[-1] == "report.html"
    assert "<h1>2 runs on" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_sweep_has_its_page_in_its_folder_and_what_is_no_run_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawings: None
) -> None:
    trials = {"a": {"seed": 0}, "b": {"seed": 1}, "c": {"method": "lamol"}, "d": {"stream": ORDER[::-1]}, "e": {}}
    sweep = write_sweep(tmp_path / "sweep", trials)
    (sweep / "table.md").write_text("# sweep", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = report("sweep").splitlines()
    assert lines[-1] == "sweep/report.html"
    assert [line.split("|")[1:3] for line in lines if line.startswith("| l")] == [
        [" l4      ", "  0, 1 "],
        [" lamol   ", "     0 "],
        [" l4      ", "    0 "],
    ]
    result = CliRunner().invoke(app, ["report", "--each", *map(str, sorted(sweep.iterdir()))], catch_exceptions=False)
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == "report.html"
    assert len([line for line in result.stdout.splitlines() if line.startswith("| l")]) == 4
    assert result.stderr == f"skipped, because it is no run directory: {sweep / 'report.html'}, " + (
        f"{sweep / 'sweep.json'}, {sweep / 'table.md'}\n"
    )
    assert (sweep / "a" / "report.md").is_file()


def test_the_page_of_one_sweep_has_its_paired_differences(tmp_path: Path, no_drawings: None) -> None:
    trials = {"a": {"method": "l4"}, "b": {"method": "lamol"}}
    sweep = write_sweep(tmp_path / "sweep", trials, against="lamol")
    assert "Paired differences to lamol:" in report(sweep)
    assert "Paired differences to lamol" in (sweep / "report.html").read_text(encoding="utf-8")
    several = report(sweep, sweep / "a", "--out", tmp_path / "page.html")
    assert "Paired" not in several, "runs from elsewhere may differ in other settings"


def test_the_runs_of_a_page_are_folded_and_many_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawings: None
) -> None:
    runs = [write_run(tmp_path / str(seed), seed=seed) for seed in range(3)]
    parts = re.findall(r'<details class="run"( open)?><summary><h2>([^<]+)</h2>', page_of(*runs))
    assert parts == [("", f"l4, seed {seed}") for seed in range(3)]
    monkeypatch.setattr(page_module, "MOST_PARTS", 2)
    assert '<details class="run"' not in page_of(*runs) and "are not shown one by one" in page_of(*runs)
    assert '<details class="run"' not in page_of(runs[0])


def test_a_folder_and_different_tasks_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / method, method) for method in ("l4", "lamol")]
    with pytest.raises(ConfigError, match="is a folder"):
        report(runs[0].path, "--out", tmp_path)
    change_summary(
        runs[1],
        lambda summary: {
            **summary,
            "stream": [*TASKS[1:], "ag"],
            "learned": [[task] for task in [*TASKS[1:], "ag"]],
            "final": {"0": dict.fromkeys([*TASKS[1:], "ag"], 1.0)},
        },
    )
    with pytest.raises(ConfigError, match="different tasks"):
        report(*(run.path for run in runs))
    assert not any(path.name.startswith("report.") for path in tmp_path.rglob("*"))


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path, no_drawings: None) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--out .*config\.yaml/page\.html: cannot be written \("):
        report(run.path, "--out", run.path / "config.yaml" / "page.html")
